import pytest
import ray

from deployments import launch
from deployments.config import AppArgs
from deployments.contract.errors import DeviceError
from deployments.serve_config import ConfigError, read_config
from tests.support.nvml import without_driver


def test_http_that_the_configuration_does_not_open_is_refused_before_anything_starts() -> (
    None
):
    config, args = read_config()
    config.applications[0].route_prefix = None
    with pytest.raises(ConfigError, match=r"^serve_config\.yaml: route_prefix: null"):
        launch.start_app(config, args, http_port=8000)


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
        launch.running_app(config, AppArgs(device="cuda"), port=1),
    ):
        pass
