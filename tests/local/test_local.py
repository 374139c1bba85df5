"""The two commands for one machine, as a user runs them: processes of their own, with a Ray of their own."""

import contextlib
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.local import loopback
from tests.support.weights import weights, weights_environment

ROOT = Path(__file__).parents[2]
LOCAL = [sys.executable, "-m", "deployments.local"]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Stands in the environment of every process that the command under test begins."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("TEST_MARK", mark)
    return mark


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at hand, and every way out of the machine closed."""
    for name in ("base", "tiny.en"):
        weights(name)
    for name, value in weights_environment().items():
        monkeypatch.setenv(name, value)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")


def test_transcribe_prints_json_needs_no_network_and_leaves_nothing_running(
    offline: None, mark: str
) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing.wav"], "error: no such file: nothing.wav"),
        (["tests/audio/jfk.flac", "--args", "[]"], "error: ARGS must be a JSON object"),
        (["tests/audio/jfk.flac", "--args", "{"], "error: ARGS must be a JSON object"),
        (
            ["tests/audio/jfk.flac", "--args", '{"beam_size": 99}'],
            "error: Invalid beam_size: must be an integer between 1 and 10",
        ),
        (
            ["tests/audio/jfk.flac", "--args", '{"model": "huge"}'],
            "error: Invalid model: 'huge'. Valid models: tiny.en, ",
        ),
    ],
)
def test_a_wrong_call_fails_in_one_line_before_anything_starts(
    arguments: list[str], text: str
) -> None:
    done = subprocess.run(
        [*LOCAL, "transcribe", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(text) and done.stderr.count("\n") == 1


def test_serve_ends_every_process_it_began_at_ctrl_c(offline: None, mark: str) -> None:
    port = loopback.free_port("127.0.0.1")
    with subprocess.Popen(
        # A shell's background jobs are started with SIGINT ignored.
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


def test_serve_on_a_port_in_use_says_so(offline: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [*LOCAL, "serve", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} on 127.0.0.1 is in use")


def _marked_processes(mark: str) -> list[str]:
    """Command lines of the processes that inherited this mark, other tests' Rays excluded."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TEST_MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
    return [command for command in found if command]


def _assert_all_end(mark: str) -> None:
    deadline = time.monotonic() + 20
    while left := _marked_processes(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
