"""The worker's first lines, and the GPUs with which it does not start. No Ray."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from deployments import checkpoints, launch, serve_config
from deployments.runpod import worker
from tests.support.nvml import install_driver, install_torch, without_driver


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(**_: object) -> None:
        raise AssertionError("this would start Ray")

    monkeypatch.setattr(ray, "init", refuse)
    # No model has this name, which ends the worker as soon as it has written its first line.
    monkeypatch.setenv("WHISPER_MODEL", "giant")
    handler, serve = signal.getsignal(signal.SIGTERM), logging.getLogger("ray.serve")
    level = serve.level
    yield
    signal.signal(signal.SIGTERM, handler)
    serve.setLevel(level)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a worker writes that cannot start."""
    with caplog.at_level(logging.INFO, "deployments"):
        assert worker.main() == 1
    return caplog.messages


def test_the_first_line_names_card_driver_and_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", memory_bytes=24_152_899_584)
    install_torch(monkeypatch, "13.0")
    assert lines(caplog)[0] == (
        'event=gpu cards=1 card="NVIDIA L4" memory_gb=24.2 driver=580.95.05 cuda=13.0'
        " torch=2.13.0 torch_cuda=13.0"
    )


def test_the_first_line_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_driver(monkeypatch)
    install_torch(monkeypatch, None, "2.13.0+cpu")
    assert lines(caplog)[0] == "event=gpu cards=0 torch=2.13.0+cpu torch_cuda=none"


def test_a_driver_that_is_too_old_ends_the_worker_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WHISPER_MODEL")
    install_driver(monkeypatch, "NVIDIA L4", version="570.86.15", cuda=12080)
    install_torch(monkeypatch, "13.0")
    _, error = lines(caplog)
    assert error == (
        "error: the NVIDIA driver 570.86.15 (CUDA 12.8) is too old for this build of PyTorch,"
        " which needs CUDA 13.0, so driver 580 or newer; docs/runpod.md, CUDA versions, says"
        " what to change"
    )


def test_a_door_to_other_machines_needs_a_decision_about_keys(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_driver(monkeypatch)
    monkeypatch.delenv("WHISPER_MODEL")
    monkeypatch.setenv("WHISPER_HTTP_PORT", "8000")
    monkeypatch.setenv("API_KEYS", "")
    monkeypatch.setenv("API_KEYS_FILE", "")
    error = lines(caplog)[-1]
    assert error.startswith("error: other machines can reach ")
    assert error.endswith("or API_KEYS=none if callers are checked elsewhere")


def test_a_variable_that_a_user_config_would_overrule_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this would start the application")

    without_driver(monkeypatch)
    monkeypatch.delenv("WHISPER_MODEL")
    monkeypatch.setenv("WHISPER_MAX_AUDIO_S", "60")
    monkeypatch.setattr(checkpoints, "find", lambda *_: tmp_path / "base.pt")
    for name in ("configure_environment", "prepare_environment", "import_serving"):
        monkeypatch.setattr(worker, name, lambda: None)
    monkeypatch.setattr(worker, "start_ray", lambda **_: None)
    monkeypatch.setattr(launch, "start_app", refuse)
    content = serve_config.CONFIG.read_text().rstrip() + (
        "\n    deployments: [{name: Router, user_config: {max_audio_s: 30}}]\n"
    )
    path = tmp_path / "serve_config.yaml"
    path.write_text(content)
    config = serve_config.read_config(path)
    monkeypatch.setattr(serve_config, "read_config", lambda: config)
    assert lines(caplog)[-1] == (
        "error: WHISPER_MAX_AUDIO_S and max_audio_s in the Router's user_config set the same"
        " option: remove one of them"
    )
