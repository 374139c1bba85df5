"""The two local commands as a user runs them: in processes and a Ray of their own."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from deployments.local import loopback
from tests.support import traffic
from tests.support.app import wait_for
from tools.weights import weights, weights_environment

ROOT = Path(__file__).parents[2]
LOCAL = [sys.executable, "-m", "deployments.local"]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A value in the environment of every process that the command under test starts."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("TEST_MARK", mark)
    return mark


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are on this machine, and no proxy leads out of it."""
    for name in ("base", "tiny.en"):
        weights(name)
    for name, value in weights_environment().items():
        monkeypatch.setenv(name, value)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")


@pytest.mark.slow
def test_transcribe_prints_json_needs_no_network_and_leaves_nothing_running(
    offline: None, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An application of the command's own needs no key.
    monkeypatch.setenv("API_KEYS", f"alice:{'0' * 64}")
    done = subprocess.run(
        [*LOCAL, "transcribe", "tests/audio/jfk.flac"]
        + ["--args", '{"model": "tiny.en", "beam_size": null}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["model"] == "tiny.en"
    assert "ask what you can do for your country" in answer["transcription"]
    for step in ("starting Ray Serve and the model", "transcribing"):
        assert f"{step}: done" in done.stderr
    _assert_all_end(mark)


def test_a_wrong_call_fails_in_one_line() -> None:
    done = subprocess.run(
        [*LOCAL, "transcribe", "tests/audio/jfk.flac", "--args", '{"beam_size": 99}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: Invalid beam_size: must be an integer between 1 and 10\n"
    )


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    done = subprocess.run(
        [*LOCAL, "serve", f"--port={port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"error: argument --port: must be 1 to 65535, not '{port}'"
    )


Copy = Callable[..., Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copies the project, with changes to its configuration; gives the copy's folder."""

    def copy(port: int = 8000, **application: Any) -> Path:
        shutil.copytree(ROOT / "deployments", tmp_path / "deployments")
        content = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        content["http_options"]["port"] = port
        content["applications"][0] |= application
        (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(content))
        return tmp_path

    return copy


@pytest.mark.parametrize("module", ["deployments.local", "deployments.runpod"])
def test_a_configuration_that_cannot_be_obeyed_is_refused_in_one_line(
    copy: Copy, module: str
) -> None:
    folder = copy(args={"max_audio": 3})
    command = ["serve"] if module == "deployments.local" else []
    done = subprocess.run(
        [sys.executable, "-m", module, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if not line.startswith("event=")]
    assert told == [
        "error: serve_config.yaml: unknown key args.max_audio; do you mean max_audio_s?"
    ]


@pytest.mark.slow
def test_name_prefix_and_options_are_obeyed_and_sigterm_ends_the_service_cleanly(
    offline: None, mark: str, copy: Copy, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    port = loopback.free_port("127.0.0.1")
    folder = copy(
        port,
        name="speech",
        route_prefix="/to/text",
        args={"default_model": "tiny.en", "models": [{"name": "tiny.en"}]},
        deployments=[{"name": "Router", "logging_config": {"logs_dir": str(logs)}}],
    )
    url = f"http://127.0.0.1:{port}/to/text"
    with subprocess.Popen(
        [*LOCAL, "serve"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            assert any(line.startswith(f"serving on {url} ") for line in server.stderr)
            done = subprocess.run(
                [*LOCAL, "transcribe", str(ROOT / "tests/audio/jfk-phone.wav")],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert f"using the application that runs on {url}\n" in done.stderr
            assert "country" in json.loads(done.stdout)["transcription"]
        finally:
            server.send_signal(signal.SIGTERM)
            _, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    # Ray's own handler of SIGTERM would end the process with a trace.
    assert "Aborted" not in stderr
    assert list(logs.glob("replica_speech_Router_*.log"))
    _assert_all_end(mark)


@pytest.mark.slow
def test_a_service_that_stops_finishes_what_it_has_accepted_and_refuses_the_rest(
    offline: None, mark: str, copy: Copy
) -> None:
    port = loopback.free_port("127.0.0.1")
    folder = copy(
        port,
        args={
            "default_model": "tiny.en",
            "models": [{"name": "tiny.en"}],
            "device": "cpu",
            **traffic.ARGS,
        },
    )
    url = f"http://127.0.0.1:{port}"
    requested = traffic.Traffic(url)
    with subprocess.Popen(
        [*LOCAL, "serve"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            assert any(line.startswith(f"serving on {url} ") for line in server.stderr)
            with requested.running():
                server.send_signal(signal.SIGTERM)
                waiting = re.compile(r"waiting for (\d+) requests, at most \d+ s\n")
                told = filter(None, map(waiting.fullmatch, server.stderr))
                accepted = int(next(told)[1])
                assert requested.get("/ready").status_code == 503
                assert requested.get("/health").status_code == 200
                assert requested.new_request() == traffic.REFUSED
                requested.let_go.set()
            _, stderr = server.communicate(timeout=60)
        finally:
            server.terminate()
    assert requested.answered() == accepted > 4
    assert server.returncode == 0, stderr
    _assert_all_end(mark)


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch can use a GPU here")
def test_a_gpu_that_pytorch_cannot_use_ends_the_command_with_the_reason(
    offline: None, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray is told that there is a GPU.
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    done = subprocess.run(
        [*LOCAL, "transcribe", "tests/audio/jfk.flac"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: this build of PyTorch ({torch.__version__}) has no CUDA;"
        " `device: cpu` in serve_config.yaml computes without a GPU"
    )
    _assert_all_end(mark)


@pytest.mark.slow
def test_serve_ends_every_process_it_began_at_ctrl_c(offline: None, mark: str) -> None:
    port = loopback.free_port("127.0.0.1")
    with subprocess.Popen(
        # A shell starts its background jobs with SIGINT ignored.
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
        + [*LOCAL, "serve", "--port", str(port)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if line.startswith(f"serving on http://127.0.0.1:{port} "):
                    break
            assert any("raylet" in command for command in _marked_processes(mark))
            models = loopback.session().get(
                f"http://127.0.0.1:{port}/models", timeout=10
            )
            assert models.ok
        finally:
            server.send_signal(signal.SIGINT)
        _, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    _assert_all_end(mark)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_interrupted_leaves_no_process_behind(
    offline: None, mark: str, number: signal.Signals
) -> None:
    port = loopback.free_port("127.0.0.1")
    with subprocess.Popen(
        [*LOCAL, "serve", "--port", str(port)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            wait_for(lambda: any("raylet" in line for line in _session(server.pid)))
        finally:
            server.send_signal(number)
        server.wait(timeout=60)
    assert not _session(server.pid)


def _session(session: int) -> list[str]:
    """Command lines of the running processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.cmdline():
                found.append(" ".join(process.cmdline()))
    return found


def _marked_processes(mark: str) -> list[str]:
    """Command lines of the processes that inherited this mark; other Rays have none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TEST_MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
    return [command for command in found if command]


def _assert_all_end(mark: str) -> None:
    wait_for(lambda: not _marked_processes(mark))
