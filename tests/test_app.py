import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.serve import Application, Deployment

from deployments import catalog
from deployments.app import build_app, model_options
from deployments.config import AppArgs
from deployments.replica.whisper_model import WhisperModel
from deployments.router.router import Router


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this would start a Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "remote", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def bound(application: Application) -> Deployment:
    # Ray shows a deployment nowhere else before the application runs.
    return application._bound_deployment


def init_args(deployment: Deployment) -> Any:
    return deployment.init_args


def router(**args: Any) -> Deployment:
    return bound(build_app(AppArgs.model_validate(args)))


def model_deployments(**args: Any) -> dict[str, Deployment]:
    _, handles, _ = init_args(router(**args))
    return {name: bound(handle) for name, handle in handles.items()}


def options(gpu_share: float = 0.0, **args: Any) -> dict[str, dict[str, Any]]:
    """By model, the options of its deployment."""
    app_args = AppArgs.model_validate(args)
    return {
        model.name: model_options(app_args, model, gpu_share)
        for model in app_args.models
    }


def test_the_deployments_are_the_router_and_one_for_each_model() -> None:
    assert router().name == "Router"
    ingress = router().func_or_class
    assert isinstance(ingress, type) and issubclass(ingress, Router)
    deployments = model_deployments()
    assert {name: deployment.name for name, deployment in deployments.items()} == {
        name: f"whisper-{name}" for name in catalog.MODELS
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
        model, preload, _, max_decode_rate = init_args(deployment)
        assert model.name == name
        assert max_decode_rate == AppArgs.model_validate(args).max_decode_rate(model)
        preloaded[name] = preload
    assert preloaded == {"tiny": True, "base": False, "mine": True}


def test_router_and_replicas_know_the_share_that_ray_is_asked_for() -> None:
    args = {
        "models": [{"name": "base"}, {"name": "medium"}],
        "device": "cuda",
        "gpu_memory_gb": 20,
    }
    expected = {"base": 0.125, "medium": 0.5}
    _, _, told_to_the_router = init_args(router(**args))
    assert told_to_the_router == expected
    for name, deployment in model_deployments(**args).items():
        _, _, told_to_the_replica, _ = init_args(deployment)
        assert told_to_the_replica == expected[name]
        assert (deployment.ray_actor_options or {})["num_gpus"] == expected[name]


def test_replicas_scale_as_configured() -> None:
    scaling = {
        name: option["autoscaling_config"]
        for name, option in options(
            models=[
                {"name": "base"},
                {"name": "tiny", "max_replicas": 3, "idle_s": 60},
            ],
        ).items()
    }
    assert (scaling["base"]["min_replicas"], scaling["base"]["max_replicas"]) == (1, 1)
    assert (scaling["tiny"]["min_replicas"], scaling["tiny"]["max_replicas"]) == (0, 3)
    assert scaling["base"]["downscale_delay_s"] == 300
    assert scaling["tiny"]["downscale_delay_s"] == 60


def targets(**args: Any) -> list[float]:
    """For each model, how many requests in work at a replica make another one worth starting."""
    return [
        option["autoscaling_config"]["target_ongoing_requests"]
        for option in options(**args).values()
    ]


def test_a_further_replica_is_for_what_does_not_decode_together() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    assert targets(models=models) == [8, 8]
    assert targets(models=models, gpu_share=0.5) == [32, 32]


def test_what_is_admitted_suffices_for_every_replica() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    assert targets(models=models, max_requests_per_model=10) == [8, 3]
    assert targets(models=models, max_requests_per_model=1) == [1, 1]


def test_no_deployment_reserves_a_cpu() -> None:
    for deployment in (router(), *model_deployments().values()):
        assert (deployment.ray_actor_options or {})["num_cpus"] == 0


def test_serve_holds_no_call_back_from_router_and_replicas() -> None:
    models = [{"name": "base"}, {"name": "tiny", "max_replicas": 3}]
    deployments = [router(), *model_deployments(models=models).values()]
    for deployment in deployments:
        assert deployment.max_ongoing_requests >= 100_000


def test_a_stop_waits_for_requests_and_for_the_router_a_little_longer() -> None:
    assert (
        router(drain_timeout_s=30)._deployment_config.graceful_shutdown_timeout_s == 40
    )
    for deployment in model_deployments(drain_timeout_s=30).values():
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 30


def test_at_an_update_the_old_one_stops_last() -> None:
    for deployment in (router(), *model_deployments().values()):
        assert deployment._deployment_config.max_surge_percent == 100


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
