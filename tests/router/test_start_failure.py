"""What a caller is told where no replica of a model answers. No Ray cluster."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import ModelUnavailableError
from deployments.contract.options import TranscriptionOptions
from deployments.router.model_client import ModelClient
from deployments.router.start_failure import load_failure, start_failure
from tests.support.handles import FOREVER, Handle, Response

MODEL = ModelArgs(name="base")
TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:whisper:whisper-base.initialize_and_get_metadata() (pid=7, ip=10.0.0.1)
  File "/app/deployments/replica/whisper_model.py", line 168, in _load
    raise ModelUnavailableError(self._model.name, reason)
deployments.contract.errors.ModelUnavailableError: Model 'base' is not available: out of memory
"""


def serve_says(
    monkeypatch: pytest.MonkeyPatch, status: str, message: str = "", gpus: float = 1
) -> None:
    deployment = SimpleNamespace(status=status, message=message)
    application = SimpleNamespace(deployments={MODEL.deployment: deployment})
    statuses = SimpleNamespace(applications={"any name": application})
    context = SimpleNamespace(app_name="any name")
    resources = {"CPU": 8.0} | ({"GPU": gpus} if gpus else {})
    monkeypatch.setattr(serve, "status", lambda: statuses)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)


async def told(handle: Handle, **args: Any) -> str:
    model = ModelClient(MODEL, cast(Any, handle), AppArgs(**args), gpu_share=0.25)
    with pytest.raises(ModelUnavailableError) as caught:
        async for _ in model.stream(cast(Any, None), TranscriptionOptions()):
            pass
    assert type(caught.value) is ModelUnavailableError
    return str(caught.value)


def without_a_place() -> Handle:
    return Handle(ping=[Response(None, FOREVER)])


async def test_a_model_whose_replicas_failed_tells_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "DEPLOY_FAILED", TRACEBACK)
    for handle in (
        without_a_place(),
        Handle(ping=[Response(DeploymentUnavailableError(cast(Any, None)))]),
    ):
        assert await told(handle, placement_timeout_s=0.02) == (
            "Model 'base' is not available: out of memory"
        )


async def test_a_failure_that_serve_does_not_explain_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "DEPLOY_FAILED", "the runtime environment is broken")
    assert await told(without_a_place(), placement_timeout_s=0.02) == (
        "Model 'base' is not available: it could not be started, and its log says why"
    )


async def test_a_cluster_without_a_gpu_is_not_called_a_full_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "UPDATING", gpus=0)
    assert await told(without_a_place(), placement_timeout_s=0.02) == (
        "Model 'base' is not available: it needs a GPU, and there is none in this Ray"
    )


async def test_a_share_that_is_not_free_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "UPSCALING")
    text = await told(without_a_place(), placement_timeout_s=0.02)
    assert "no free share of a GPU (it needs 0.25 of one) within 0.02 s" in text


async def test_an_earlier_failure_of_a_healthy_model_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "HEALTHY", TRACEBACK)
    full = Handle(ping=[Response(DeploymentUnavailableError(cast(Any, None)))])
    assert await told(full) == (
        "Model 'base' is not available: its deployment takes no requests now"
    )


def test_the_one_who_starts_the_application_is_told_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_says(monkeypatch, "DEPLOY_FAILED", TRACEBACK)
    assert load_failure(MODEL, "any name") == "out of memory"
    assert load_failure(MODEL, "another name") is None


@pytest.mark.parametrize("silent", ["status", "cluster_resources"])
async def test_while_serve_or_ray_does_not_answer_the_guess_is_told(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    def fail() -> None:
        raise {"status": ActorDiedError(), "cluster_resources": RayError()}[silent]

    serve_says(monkeypatch, "UPDATING")
    monkeypatch.setattr(serve if silent == "status" else ray, silent, fail)
    text = await told(without_a_place(), placement_timeout_s=0.02)
    assert "no free share of a GPU (it needs 0.25 of one) within 0.02 s" in text
    if silent == "status":
        assert load_failure(MODEL, "any name") is None


def test_without_serve_nothing_is_known() -> None:
    assert start_failure(MODEL, gpu_share=0.25) is None
