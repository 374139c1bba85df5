from pathlib import Path

import pytest
import ray
from pydantic import ValidationError

from deployments.config import APPLICATION, AppArgs
from deployments.contract.errors import DeviceError
from deployments.launch import CONFIG, read_args, read_config, running_app
from tests.support.nvml import without_driver


def test_the_configuration_and_its_arguments_are_read() -> None:
    config, args = read_config()
    assert [application.name for application in config.applications] == [APPLICATION]
    assert args == AppArgs()
    assert read_args() == args


def test_an_application_without_arguments_has_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "applications: [{name: whisper, import_path: 'deployments.app:build_app'}]"
    )
    assert read_args(path) == read_config(path)[1] == AppArgs()


def test_a_misspelt_argument_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.read_text().replace("max_audio_s", "max_audio"))
    for read in (read_args, read_config):
        with pytest.raises(ValidationError, match="max_audio\n"):
            read(path)


def test_a_gpu_that_is_not_there_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> None:
        raise AssertionError("this would start Ray")

    monkeypatch.setattr(ray, "init", refuse)
    without_driver(monkeypatch)
    config, _ = read_config()
    with (
        pytest.raises(DeviceError, match="this machine has no NVIDIA GPU"),
        running_app(config, AppArgs(device="cuda"), port=1),
    ):
        pass
