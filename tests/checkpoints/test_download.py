"""Weights that are fetched, from a server on this machine that stands in for OpenAI's."""

import errno
import fcntl
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from deployments import catalog, checkpoints
from deployments.checkpoints import download
from deployments.contract.errors import CheckpointError
from tests.support.checkpoint_server import (
    CONTENT,
    SHA256,
    CheckpointServer,
    put,
    says_where,
    serve_from,
)

ROOT = Path(__file__).parents[2]


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


class TestFetch:
    def test_it_downloads_once(
        self, cache: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = checkpoints.fetch("base")
        # The second time, the file is known to be whole without being read.
        monkeypatch.delattr(hashlib, "file_digest")
        assert checkpoints.fetch("base") == path == cache / "base.pt"
        assert path.read_bytes() == CONTENT
        assert server.requests == ["/base.pt"]
        assert visible(cache) == ["base.pt"]

    def test_the_file_is_readable_by_other_users(
        self, home: Path, server: CheckpointServer
    ) -> None:
        before = os.umask(0o022)
        try:
            mode = checkpoints.fetch("base").stat().st_mode
        finally:
            os.umask(before)
        assert mode & 0o777 == 0o644

    def test_a_configured_folder_receives_the_download(
        self, home: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "new" / "folder"))
        (home / "runpod-volume").mkdir()
        assert checkpoints.fetch("base") == home / "new" / "folder" / "base.pt"

    def test_a_network_volume_receives_the_download_where_there_is_one(
        self, home: Path, server: CheckpointServer
    ) -> None:
        (home / "runpod-volume").mkdir()
        expected = home / "runpod-volume" / "whisper" / "base.pt"
        assert checkpoints.fetch("base") == expected

    def test_an_unwritable_folder_is_passed_over(
        self,
        home: Path,
        cache: Path,
        server: CheckpointServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Below a file no folder can be made, not even by root.
        blocked = put(home / "file") / "folder"
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(blocked))
        assert checkpoints.fetch("base") == cache / "base.pt"

    def test_no_writable_folder_at_all_names_what_to_set(
        self, home: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(put(home / "file") / "cache"))
        with pytest.raises(CheckpointError, match="set WHISPER_CHECKPOINT_DIR") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert server.requests == []

    def test_a_name_that_is_not_official_needs_a_checkpoint(self, home: Path) -> None:
        with pytest.raises(CheckpointError, match="'mine' is not an official model"):
            checkpoints.fetch("mine")


class TestWeightsOfOnesOwn:
    def test_a_missing_checkpoint_is_named_without_its_folder(
        self, home: Path, server: CheckpointServer
    ) -> None:
        with pytest.raises(CheckpointError, match=r"does not exist: tuned\.pt") as info:
            checkpoints.fetch("base", str(home / "tuned.pt"))
        assert not says_where(str(info.value))
        assert server.requests == []

    def test_a_checkpoint_is_neither_hashed_nor_replaced(
        self, home: Path, server: CheckpointServer
    ) -> None:
        tuned = put(home / "base.pt", b"tuned")
        assert checkpoints.fetch("base", str(tuned)) == tuned
        assert server.requests == []

    def test_an_official_name_is_refused_without_a_download(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        put(cache / "base.pt", b"\x80\x02 fine-tuned")
        with pytest.raises(CheckpointError, match=r"base\.pt is corrupt"):
            checkpoints.fetch("base")
        assert server.requests == []

    def test_an_official_name_is_taken_where_wanted_and_the_log_says_so(
        self,
        cache: Path,
        server: CheckpointServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = put(cache / "base.pt", b"\x80\x02 fine-tuned")
        assert checkpoints.fetch("base", accept_unofficial=True) == path
        assert caplog.messages == [
            "event=unofficial_weights model=base reason=not_openais_file"
        ]
        assert server.requests == []

    def test_half_a_download_is_no_file_of_the_users_own(self, cache: Path) -> None:
        put(cache / "base.pt", b"PK\x03\x04 and then nothing")
        with pytest.raises(CheckpointError, match="corrupt"):
            checkpoints.fetch("base", accept_unofficial=True)


class TestProgress:
    def test_it_is_a_line_now_and_then_where_there_is_no_terminal(
        self,
        home: Path,
        server: CheckpointServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(download, "LOG_PROGRESS_EVERY_S", 0)
        monkeypatch.setattr(download, "CHUNK_BYTES", 1 << 18)
        server.content = CONTENT * 4
        sha256 = hashlib.sha256(server.content).hexdigest()
        larger = replace(catalog.MODELS["base"], sha256=sha256)
        monkeypatch.setitem(catalog.MODELS, "base", larger)
        checkpoints.fetch("base")
        assert "event=weights_progress model=base mb=1 of_mb=2" in caplog.messages
        assert len(caplog.messages) < 15

    @pytest.mark.parametrize("progress", [True, False])
    def test_it_is_a_bar_on_a_terminal_unless_switched_off(
        self,
        home: Path,
        server: CheckpointServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        progress: bool,
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        checkpoints.fetch("base", progress=progress)
        captured = capsys.readouterr()
        assert ("base: 100%" in captured.err) == progress
        assert captured.out == ""


class TestFailingDownload:
    def test_a_wrong_hash_leaves_nothing_behind(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        server.content = b"not the weights"
        with pytest.raises(CheckpointError, match="wrong SHA-256") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache) == []
        assert leftovers(cache) == []
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [403, 503])
    def test_a_refusal_names_its_status(
        self, cache: Path, server: CheckpointServer, status: int
    ) -> None:
        server.status = status
        with pytest.raises(CheckpointError, match=f"HTTP status {status}") as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache) == []

    def test_a_connection_cut_once_is_tried_again(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        server.cuts = 1
        assert checkpoints.fetch("base").read_bytes() == CONTENT
        assert len(server.requests) == 2
        assert leftovers(cache) == []

    def test_a_connection_cut_twice_is_an_error_and_leaves_nothing_behind(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        server.cuts = 2
        with pytest.raises(CheckpointError, match="cannot be reached") as info:
            checkpoints.fetch("medium")
        assert not says_where(str(info.value))
        assert len(server.requests) == 2
        assert visible(cache) == []
        assert leftovers(cache) == []

    def test_no_route_says_what_to_do_and_names_no_host(
        self, no_route: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="deployments")
        with pytest.raises(CheckpointError) as info:
            checkpoints.fetch("medium")
        text = str(info.value)
        assert "cannot be reached" in text
        assert "put medium.pt into the folder that WHISPER_CHECKPOINT_DIR names" in text
        assert not says_where(text)
        assert info.value.__suppress_context__
        lines = [r.message for r in caplog.records if r.name.startswith("deployments")]
        assert lines
        assert not any("127.0.0.1" in line or "://" in line for line in lines)

    def test_a_silent_server_is_not_tried_twice(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "CONNECT_TIMEOUT_S", 0.1)
        attempts = []
        get = requests.get

        def counting(url: str, **options: Any) -> requests.Response:
            attempts.append(url)
            return get(url, **options)

        monkeypatch.setattr(requests, "get", counting)
        # A full backlog drops the packets of further connections, as a firewall does.
        with socket.socket() as listener, socket.socket() as filler:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            filler.connect(listener.getsockname())
            port = listener.getsockname()[1]
            serve_from(monkeypatch, f"http://127.0.0.1:{port}")
            with pytest.raises(CheckpointError, match="cannot be reached"):
                checkpoints.fetch("medium")
        assert len(attempts) == 1

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (errno.ENOSPC, "no space left"),
            (errno.EDQUOT, "no space left"),
            (errno.EROFS, "cannot be stored"),
        ],
    )
    def test_a_fault_of_the_disk_is_named_and_leaves_nothing_behind(
        self,
        cache: Path,
        server: CheckpointServer,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
        message: str,
    ) -> None:
        def broken(_: int) -> None:
            raise OSError(code, "broken")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(CheckpointError, match=message) as info:
            checkpoints.fetch("base")
        assert not says_where(str(info.value))
        assert visible(cache) == []
        assert leftovers(cache) == []


class TestConcurrency:
    def test_threads_share_one_download(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        with ThreadPoolExecutor(4) as threads:
            results = set(threads.map(checkpoints.fetch, ["base"] * 4))
        assert results == {cache / "base.pt"}
        assert len(server.requests) == 1

    def test_processes_share_one_download(
        self, cache: Path, server: CheckpointServer
    ) -> None:
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
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        path = cache / "base.pt"
        assert [out.decode() for out, _ in outputs] == [f"base {path}\n"] * 2
        assert path.read_bytes() == CONTENT
        assert len(server.requests) == 1

    def test_without_locks_both_download_and_neither_is_harmed(
        self, cache: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", unsupported)
        # Nobody gets an answer before all three have asked.
        server.meeting = threading.Barrier(3)
        with ThreadPoolExecutor(3) as threads:
            results = set(threads.map(checkpoints.fetch, ["base"] * 3))
        assert results == {cache / "base.pt"}
        assert (cache / "base.pt").read_bytes() == CONTENT
        assert leftovers(cache) == []

    def test_models_do_not_wait_for_each_other(
        self, home: Path, server: CheckpointServer
    ) -> None:
        server.meeting = threading.Barrier(3)
        with ThreadPoolExecutor(3) as threads:
            fetched = list(threads.map(checkpoints.fetch, ["base", "medium", "turbo"]))
        assert len(set(fetched)) == 3

    def test_the_final_name_appears_only_when_the_file_is_complete(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        server.resume.clear()
        with ThreadPoolExecutor(1) as threads:
            fetching = threads.submit(checkpoints.fetch, "base")
            while not leftovers(cache):
                assert not fetching.done()
                time.sleep(0.005)
            assert checkpoints.find("base") is None
            server.resume.set()
            assert fetching.result().read_bytes() == CONTENT

    def test_what_a_killed_process_left_behind_is_removed(
        self, cache: Path, server: CheckpointServer
    ) -> None:
        abandoned = put(cache / ".base.pt.abandoned.part")
        os.utime(abandoned, (0, 0))
        in_work = put(cache / ".base.pt.in-work.part")
        checkpoints.fetch("base")
        assert leftovers(cache) == [in_work]
