import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import ray
from ray.serve import Application, Deployment

from deployments import app, catalog
from deployments.app import build_app
from deployments.config import AppArgs
from deployments.replica import loading as model_loading
from deployments.replica.whisper_model import WhisperModel
from deployments.router.router import Router

OFFICIAL = list(catalog.MODELS)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks Ray for anything must say what Ray answers."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this would start a Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "remote", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def bound(application: Application) -> Deployment:
    # Ray shows it nowhere else before the application runs.
    return application._bound_deployment


def init_args(deployment: Deployment) -> Any:
    return deployment.init_args


def actor_options(deployment: Deployment) -> dict[str, Any]:
    return deployment.ray_actor_options or {}


def router(**args: Any) -> Deployment:
    return bound(build_app(AppArgs.model_validate(args)))


def models_of(router: Deployment) -> dict[str, Deployment]:
    _, handles, _ = init_args(router)
    return {name: bound(handle) for name, handle in handles.items()}


def model_deployments(**args: Any) -> dict[str, Deployment]:
    return models_of(router(**args))


def shares(**args: Any) -> dict[str, float]:
    """By model, the part of a GPU that its replicas ask for."""
    ingress = router(**args)
    asked = {
        name: actor_options(deployment)["num_gpus"]
        for name, deployment in models_of(ingress).items()
    }
    _, _, told_to_the_router = init_args(ingress)
    assert told_to_the_router == asked
    for name, deployment in models_of(ingress).items():
        _, _, told_to_the_replica = init_args(deployment)
        assert told_to_the_replica == asked[name]
    return asked


def test_the_deployments_are_the_router_and_one_for_each_model() -> None:
    assert router().name == "Router"
    ingress = router().func_or_class
    assert isinstance(ingress, type) and issubclass(ingress, Router)
    deployments = model_deployments()
    assert {name: deployment.name for name, deployment in deployments.items()} == {
        name: f"whisper-{name}" for name in OFFICIAL
    }
    for deployment in deployments.values():
        assert deployment.func_or_class is WhisperModel


def test_an_alias_in_the_configuration_names_no_second_deployment() -> None:
    args = {"default_model": "large", "models": [{"name": "large"}]}
    assert [d.name for d in model_deployments(**args).values()] == ["whisper-large-v3"]


def test_each_model_gets_its_own_arguments_and_only_the_default_one_is_preloaded() -> (
    None
):
    args = {
        "default_model": "tiny",
        "models": [
            {"name": "tiny"},
            {"name": "base"},
            {"name": "mine", "checkpoint": "/mine.pt", "min_replicas": 1},
        ],
    }
    preloaded = {}
    for name, deployment in model_deployments(**args).items():
        model, preload, _ = init_args(deployment)
        assert model.name == name
        preloaded[name] = preload
    assert preloaded == {"tiny": True, "base": False, "mine": True}


def test_replicas_scale_as_configured() -> None:
    deployments = model_deployments(
        models=[{"name": "base"}, {"name": "tiny", "max_replicas": 3, "idle_s": 60}],
    )
    scaling: dict[str, Any] = {
        name: deployment._deployment_config.autoscaling_config
        for name, deployment in deployments.items()
    }
    assert (scaling["base"].min_replicas, scaling["base"].max_replicas) == (1, 1)
    assert (scaling["tiny"].min_replicas, scaling["tiny"].max_replicas) == (0, 3)
    assert scaling["base"].downscale_delay_s == 300
    assert scaling["tiny"].downscale_delay_s == 60


def targets(**args: Any) -> list[float]:
    """Requests in work at a replica from which on another one is worth starting."""
    deployments = model_deployments(**args).values()
    options: list[Any] = [d._deployment_config.autoscaling_config for d in deployments]
    return [option.target_ongoing_requests for option in options]


def test_a_further_replica_is_for_what_does_not_decode_together() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    assert targets(models=models) == [8, 8]
    gpu = {"models": models, "device": "cuda", "gpu_memory_gb": 24}
    assert targets(**gpu) == [32, 32]


def test_what_is_let_in_suffices_for_every_replica() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    assert targets(models=models, max_requests_per_model=10) == [8, 3]
    assert targets(models=models, max_requests_per_model=1) == [1, 1]


def test_no_deployment_reserves_a_cpu() -> None:
    for deployment in (router(), *model_deployments().values()):
        assert actor_options(deployment)["num_cpus"] == 0


def test_no_queue_of_serves_is_shorter_than_what_the_router_lets_through() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    for limits in ({}, {"max_requests_per_model": 500}):
        args = AppArgs.model_validate({"models": models} | limits)
        deployments = model_deployments(models=models, **limits)
        for model in args.models:
            at_once = args.max_concurrency(model, on_gpu=False)
            assert deployments[model.name].max_ongoing_requests >= at_once
            let_in = at_once + args.max_waiting_requests
            assert router().max_ongoing_requests > let_in * len(args.models)


def test_a_machine_without_gpu_gives_no_shares() -> None:
    assert shares() == dict.fromkeys(OFFICIAL, 0.0)


def test_a_cluster_without_gpu_gives_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert shares(gpu_memory_gb=24) == dict.fromkeys(OFFICIAL, 0.0)


def test_a_gpu_of_the_cluster_is_found_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert shares(gpu_memory_gb=24)["medium"] == pytest.approx(10 / 24, abs=1e-4)


def test_a_gpu_is_left_alone_where_the_configuration_says_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert shares(device="cpu", gpu_memory_gb=24) == dict.fromkeys(OFFICIAL, 0.0)
    share = {"models": [{"name": "base", "gpu_share": 0.5}], "device": "cpu"}
    assert shares(**share) == {"base": 0.0}


@pytest.mark.parametrize("card_gb", [8, 24, 80])
def test_a_share_is_the_models_need_over_the_cards_memory(card_gb: float) -> None:
    assert shares(device="cuda", gpu_memory_gb=card_gb) == pytest.approx(
        {
            name: min(1.0, model.vram_gb / card_gb)
            for name, model in catalog.MODELS.items()
        },
        abs=6e-5,
    )


def test_a_model_larger_than_the_card_asks_for_the_whole_card() -> None:
    on_8_gb = shares(device="cuda", gpu_memory_gb=8)
    assert on_8_gb["large-v3"] == 1.0
    assert on_8_gb["turbo"] == 0.75


def test_every_share_is_one_that_ray_can_count() -> None:
    # Ray refuses finer ones than a ten-thousandth.
    for card_gb in (7.9, 23.6, 141.0, 1e6):
        for share in shares(device="cuda", gpu_memory_gb=card_gb).values():
            assert 0.0001 <= share <= 1
            assert share == round(share, 4)


def test_a_configured_share_counts_whatever_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "_card_memory_gb", lambda: None)
    args = {
        "models": [{"name": "base", "gpu_share": 0.25}, {"name": "tiny"}],
        "device": "cuda",
    }
    assert shares(**args) == {"base": 0.25, "tiny": 1.0}
    assert shares(**args, gpu_memory_gb=100) == {"base": 0.25, "tiny": 0.02}


def test_weights_of_unknown_shape_ask_for_a_whole_card() -> None:
    mine = {"checkpoint": "/mine.pt"}
    models = [
        {"name": "base"},
        mine | {"name": "mine"},
        mine | {"name": "ours", "base_model": "medium"},
    ]
    assert shares(device="cuda", gpu_memory_gb=20, models=models) == {
        "base": 0.125,
        "mine": 1.0,
        "ours": 0.5,
    }


class Task:
    """What `ray.remote` makes of a function, without Ray."""

    def remote(self) -> "Task":
        return self


def test_the_card_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", lambda *_, **__: 25_000_000_000)
    assert shares(device="cuda", models=[{"name": "base"}]) == {"base": 0.1}


def driver(monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    memory = SimpleNamespace(total=24_000_000_000)
    for name, answer in {
        "nvmlInit": None,
        "nvmlDeviceGetCount": cards,
        "nvmlDeviceGetHandleByIndex": object(),
        "nvmlDeviceGetMemoryInfo": memory,
    }.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)


def test_the_driver_is_asked_before_pytorch_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver(monkeypatch, cards=1)
    assert app._card_memory() == 24_000_000_000


@pytest.mark.parametrize("cards", [0, 2])
def test_pytorch_is_asked_where_the_driver_cannot_know_which_card_is_meant(
    monkeypatch: pytest.MonkeyPatch, cards: int
) -> None:
    driver(monkeypatch, cards)
    monkeypatch.setattr(model_loading, "card_memory", lambda: 8_000_000_000)
    assert app._card_memory() == 8_000_000_000


@pytest.mark.parametrize("error", [ray.exceptions.GetTimeoutError(), OSError("driver")])
def test_a_card_that_does_not_tell_its_memory_is_not_shared(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", fail)
    assert shares(device="cuda") == dict.fromkeys(OFFICIAL, 1.0)


HEAVY = {"torch", "whisper", "numba"}


@pytest.mark.parametrize(
    ("program", "left_out"),
    [
        (
            (
                "import deployments.router.router, deployments.replica.whisper_model\n"
                "from deployments.app import build_app\n"
                "from deployments.config import AppArgs\n"
                "build_app(AppArgs(device='cuda', gpu_memory_gb=24))"
            ),
            HEAVY,
        ),
        (
            (
                "from deployments.runpod import environment, worker\n"
                "environment.configure_environment()\n"
                "worker.import_application()\n"
                "worker.import_serving()"
            ),
            HEAVY,
        ),
        # The health port is up before any of them is imported.
        ("import deployments.runpod.worker", HEAVY | {"ray", "runpod"}),
    ],
    ids=["application", "worker", "health port"],
)
def test_what_takes_long_to_import_is_left_to_the_replicas(
    program: str, left_out: set[str]
) -> None:
    check = f"import sys\n{program}\nsys.exit(str({left_out} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.endswith("set()\n"), done.stderr
