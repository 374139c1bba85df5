"""The two local commands as a user runs them: in processes and a Ray of their own."""

import contextlib
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deployments.local import loopback
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_every_process_it_began_at_a_signal(
    offline: None, mark: str, number: signal.Signals
) -> None:
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
            server.send_signal(number)
        _, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    # Ray's own handler of SIGTERM would end the process with a trace.
    assert "Aborted" not in stderr
    _assert_all_end(mark)


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
