"""`GET /ready` and `GET /ping`: whether requests should come here."""

import asyncio
from typing import Any, cast

import httpx
import pytest
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.testclient import TestClient

from deployments import api
from deployments.api import readiness
from deployments.config import AppArgs, ModelArgs
from deployments.replica.transcript import SlotUse
from deployments.router import model_client
from deployments.router.router import Router
from tests.support.handles import FOREVER, Handle, Response
from tests.support.routers import router

LOADED = Response([SlotUse(8, 0, 0)])
FULL = Response([SlotUse(8, 8, 50)])
LOADING = Response([None])
SILENT = Response([], FOREVER)
# What Serve's handle raises at once.
NO_REPLICA = Response(DeploymentUnavailableError(cast(Any, "whisper-base")))


@pytest.fixture(autouse=True)
def _asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_STILL_TRUE_S", 0.0)


def client(router: Router) -> TestClient:
    return TestClient(api.build(router), raise_server_exceptions=False)


@pytest.mark.parametrize("told", [LOADED, FULL], ids=["idle", "full"])
def test_with_the_default_model_loaded_the_service_is_ready(told: Response) -> None:
    served = client(router(Handle(slots=[told])))
    answer = served.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert (served.head("/ready").status_code, served.head("/ready").content) == (
        200,
        b"",
    )
    ping = served.get("/ping")
    assert (ping.status_code, ping.content) == (200, b"")


@pytest.mark.parametrize("told", [NO_REPLICA, LOADING], ids=["no replica", "loading"])
def test_while_the_default_model_starts_callers_are_told_to_wait(
    told: Response,
) -> None:
    served = client(router(Handle(slots=[told])))
    answer = served.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "The service is not ready; try again",
        "type": "service_unavailable",
    }
    assert answer.headers["retry-after"] == "5"
    ping = served.get("/ping")
    assert (ping.status_code, ping.content) == (204, b"")


async def test_a_model_too_busy_to_answer_stays_as_ready_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_SLOTS_TIMEOUT_S", 0.02)
    busy = router(Handle(slots=[SILENT, FULL, SILENT, LOADING, SILENT]))
    assert [await busy.ready() for _ in range(5)] == [False, True, True, False, False]


async def test_a_service_whose_status_lists_no_replica_is_as_ready_as_its_replicas() -> (
    None
):
    assert await router(Handle(slots=[LOADED]), running=0).ready()


async def test_a_default_model_that_may_stop_when_idle_is_not_asked() -> None:
    handle = Handle()
    args = AppArgs(models=[ModelArgs(name="base", min_replicas=0)])
    handles: Any = {"base": handle}
    served = Router(args, handles, {"base": 0.0}, running_replicas=dict)
    assert await served.ready()
    assert handle.calls == []


async def test_other_models_are_not_asked() -> None:
    handle = Handle(slots=[LOADED])
    assert await router(handle, "base", "tiny").ready()
    assert handle.calls == ["slots"]


async def test_callers_at_the_same_time_share_one_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "_STILL_TRUE_S", FOREVER)
    handle = Handle(slots=[Response(FULL.outcome, 0.02)])
    transport = httpx.ASGITransport(api.build(router(handle)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as served:
        paths = ["/ready", "/ping"] * 20
        answers = await asyncio.gather(*[served.get(path) for path in paths])
    assert {answer.status_code for answer in answers} == {200}
    assert handle.calls == ["slots"]
