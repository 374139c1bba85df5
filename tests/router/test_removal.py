"""Requests that wait for a replica of a model which Serve removes. No Ray cluster."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.schema import ApplicationStatus

from deployments.contract.errors import ServiceUnavailableError
from deployments.router import removal
from deployments.router.removal import Removal

NAME = "whisper-base"
RUNNING = {"RUNNING": 1}
STARTING = {"STARTING": 1}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_LOOK_EVERY_S", 0.001)


class Serve:
    """What Serve's controller tells of the application, in turn, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *told: Any) -> None:
        self.asked = 0
        self._told = list(told)
        context = SimpleNamespace(app_name="speech")
        monkeypatch.setattr(serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(serve, "status", self._status)

    def _status(self) -> Any:
        self.asked += 1
        told = self._told[0]
        if len(self._told) > 1:
            self._told.pop(0)
        if isinstance(told, Exception):
            raise told
        return SimpleNamespace(applications=told)


def application(status: str, **replicas: dict[str, int]) -> dict[str, Any]:
    deployments = {
        name.replace("_", "-"): SimpleNamespace(replica_states=states)
        for name, states in replicas.items()
    }
    found = SimpleNamespace(status=ApplicationStatus(status), deployments=deployments)
    return {"speech": found}


@pytest.mark.parametrize(
    "told",
    [
        application("DELETING"),
        application("RUNNING", whisper_turbo=RUNNING),
        application("DEPLOYING", whisper_turbo=STARTING),
    ],
    ids=["application deleted", "model taken out", "model being taken out"],
)
async def test_who_waits_for_a_replica_that_will_not_come_is_told_so(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    starting = application("DEPLOYING", whisper_base=STARTING)
    Serve(monkeypatch, starting, told)
    removal = Removal(NAME)
    for _ in range(2):
        waiting = asyncio.get_running_loop().create_future()
        with pytest.raises(ServiceUnavailableError, match="send the request again"):
            await removal.unless_removed(waiting)
        assert waiting.cancelled()


@pytest.mark.parametrize(
    "told",
    [
        application("DEPLOYING", whisper_base={}),
        application("DEPLOYING"),
        application("DEPLOY_FAILED"),
        {},
        ActorDiedError(),
    ],
    ids=[
        *("stopped when idle", "built anew", "not built"),
        *("controller not there", "controller dead"),
    ],
)
async def test_a_replica_that_may_still_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    controller = Serve(monkeypatch, told)
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(Removal(NAME).unless_removed(answer))
    while controller.asked < 3:
        await asyncio.sleep(0.001)
    answer.set_result("loaded")
    assert await waiting == "loaded"


async def test_those_who_wait_at_the_same_time_share_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller = Serve(monkeypatch, application("DELETING"))
    shared = Removal(NAME)
    futures = [asyncio.get_running_loop().create_future() for _ in range(20)]
    waiting = [shared.unless_removed(future) for future in futures]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in told} == {ServiceUnavailableError}
    assert controller.asked < 20


async def test_a_model_that_is_there_again_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, there = application("DELETING"), application("RUNNING", whisper_base=RUNNING)
    controller = Serve(monkeypatch, gone, there)
    removal = Removal(NAME)
    with pytest.raises(ServiceUnavailableError):
        await removal.unless_removed(asyncio.get_running_loop().create_future())
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(removal.unless_removed(answer))
    while controller.asked < 3:
        await asyncio.sleep(0.001)
    answer.set_result("loaded")
    assert await waiting == "loaded"


async def test_a_status_that_cannot_be_read_ends_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Serve(monkeypatch, TypeError("of Serve"))
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(Removal(NAME).unless_removed(answer))
    while not caplog.messages:
        await asyncio.sleep(0.001)
    assert caplog.messages == ["event=removal_unknown error=TypeError"]
    answer.set_result("loaded")
    assert await waiting == "loaded"


async def test_what_the_call_raises_is_raised() -> None:
    answer = asyncio.get_running_loop().create_future()
    answer.set_exception(ValueError("of the replica"))
    with pytest.raises(ValueError, match="of the replica"):
        await Removal(NAME).unless_removed(answer)
