from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from deployments import launch
from deployments.config import AppArgs
from deployments.contract.errors import DeviceError, ModelUnavailableError
from deployments.ray_node import StartError
from deployments.serve_config import ConfigError, read_config
from tests.support.nvml import without_driver


def test_http_that_the_configuration_does_not_open_is_refused_before_anything_starts() -> (
    None
):
    config, args = read_config()
    config.applications[0].route_prefix = None
    with pytest.raises(ConfigError, match=r"^serve_config\.yaml: route_prefix: null"):
        launch.start_app(config, args, http_port=8000)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {},
            "other machines can reach 0.0.0.0, and there are no API keys: set API_KEYS",
        ),
        ({"API_KEYS": "alice:secret"}, "API_KEYS, line 1 must be name:sha256"),
    ],
)
def test_a_door_without_a_decision_about_keys_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name in ("API_KEYS", "API_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config, args = read_config()
    with pytest.raises(StartError) as caught:
        launch.start_app(config, args, http_host="0.0.0.0", http_port=8000)
    assert str(caught.value).startswith(told)
    assert "secret" not in str(caught.value)


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


class Waiting:
    """A deployment's handle and its answers, which come only where the deployment has started."""

    def __init__(self, started: bool) -> None:
        self.started = started
        self.ready = self.health = self

    def remote(self) -> "Waiting":
        return self

    def result(self, timeout_s: float) -> None:
        if not self.started:
            raise TimeoutError


def start(
    monkeypatch: pytest.MonkeyPatch, started: list[str], message: str = ""
) -> None:
    """Start an application in a Serve that goes on looking for a place for the other deployments.

    message: what Serve says of the model
    """
    config, _ = read_config()
    statuses = SimpleNamespace(
        applications={
            "whisper": SimpleNamespace(
                status="DEPLOYING",
                deployments={
                    "whisper-base": SimpleNamespace(status="UPDATING", message=message)
                },
            )
        }
    )

    def handle(deployment: str, _: str = "") -> Any:
        return Waiting(deployment in started)

    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(serve, "run_many", lambda *_, **__: [handle("Router")])
    monkeypatch.setattr(serve, "get_deployment_handle", handle)
    monkeypatch.setattr(serve, "status", lambda: statuses)
    args = AppArgs(device="cpu", placement_timeout_s=0.01, model_start_timeout_s=0.03)
    launch.start_app(config, args)


@pytest.mark.parametrize(
    ("started", "missing"), [(["Router"], "whisper-base"), (["whisper-base"], "Router")]
)
def test_a_deployment_for_which_ray_has_no_place_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, started: list[str], missing: str
) -> None:
    with pytest.raises(StartError) as caught:
        start(monkeypatch, started)
    assert str(caught.value) == (
        f"{missing} has not started within 0.04 s: it may ask for more CPUs, GPUs or memory"
        " than Ray has, or need a longer model_start_timeout_s"
    )


def test_a_start_that_takes_too_long_is_told_with_its_reason_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = "Model 'base' is not available: out of memory"
    with pytest.raises(ModelUnavailableError, match="out of memory$"):
        start(monkeypatch, ["Router"], message)


def test_an_application_whose_deployments_answer_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start(monkeypatch, ["Router", "whisper-base"])
