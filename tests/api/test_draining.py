"""A drain as callers see it: readiness, what is refused, what is finished, and what is ended."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest

from deployments import api
from deployments.contract.errors import ServiceUnavailableError
from deployments.router.router import Router
from tests.support.handles import (
    FOREVER,
    Handle,
    Response,
    events,
    transcript,
)
from tests.support.routers import AUDIO, RECORDING, router

FLAC = (AUDIO / "jfk.flac").read_bytes()
STREAMED = RECORDING | {"stream": True}
LEFT_S = 30.0
WAITING = "The service stops, and this request did not end within drain_timeout_s; send it again"


class Gate:
    """A replica's answer that comes when the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    def response(self) -> Response:
        gate = self

        class Held(Response):
            async def __anext__(self) -> Any:
                event = await super().__anext__()
                if event is not self.outcome[0]:
                    await gate.open.wait()
                return event

        return Held(events(transcript()).outcome)


@asynccontextmanager
async def calling(served: Router) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api.build(served))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as caller:
        yield caller


@contextmanager
def requested(*calls: Any) -> Iterator[list[asyncio.Future[Any]]]:
    tasks = [asyncio.ensure_future(call) for call in calls]
    yield tasks
    for task in tasks:
        task.cancel()


async def in_work(served: Router, handle: Handle, streams: int, requests: int) -> None:
    """Return when so many requests have come, and so many of them to a replica."""
    async with asyncio.timeout(LEFT_S):
        while handle.calls.count("stream") < streams:
            await asyncio.sleep(0.001)
        while served.in_flight.in_work < requests:
            await asyncio.sleep(0.001)


class HeldBody:
    """A body whose second half comes when `rest` is set."""

    def __init__(self) -> None:
        self.rest = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield FLAC[:1000]
        await self.rest.wait()
        yield FLAC[1000:]


async def test_what_was_accepted_is_finished_and_what_is_new_is_refused() -> None:
    gate, body = Gate(), HeldBody()
    # One for each request, because a response remembers how far it has been read.
    handle = Handle(stream=[gate.response() for _ in range(3)])
    served = router(handle, drain_timeout_s=FOREVER)
    async with calling(served) as caller:
        with requested(
            caller.post("/transcribe", json=RECORDING),
            caller.post(
                "/transcribe", content=body, headers={"content-type": "audio/flac"}
            ),
            served.transcribe(RECORDING),
        ) as accepted:
            await in_work(served, handle, streams=2, requests=3)
            assert (await served.drain()).in_work == 3
            new = await caller.post("/transcribe", json=RECORDING)
            assert (new.status_code, new.json()) == (
                503,
                {
                    "error": "The service is stopping and takes no new requests; send this one"
                    " again",
                    "type": "service_unavailable",
                },
            )
            assert new.headers["retry-after"] == "5"
            assert new.headers["connection"] == "close"
            new = await caller.post("/v1/audio/transcriptions", json={})
            assert (new.status_code, new.json()["error"]["code"]) == (
                503,
                "service_unavailable",
            )
            with pytest.raises(ServiceUnavailableError):
                await served.transcribe(RECORDING)
            with pytest.raises(ServiceUnavailableError):
                await anext(aiter(served.stream(RECORDING)))
            body.rest.set()
            gate.open.set()
            over_http, uploaded, by_handle = await asyncio.gather(*accepted)
    assert [over_http.status_code, uploaded.status_code] == [200, 200]
    assert by_handle["transcription"] == "hello"
    assert (await served.drain()).in_work == 0


async def test_readiness_ends_at_once_and_health_stays() -> None:
    served = router(Handle(), "base", running=0)
    served.args.models[0].min_replicas = 0
    async with calling(served) as caller:
        assert (await caller.get("/ready")).status_code == 200
        await served.drain()
        assert (await caller.get("/ready")).status_code == 503
        assert (await caller.get("/ping")).status_code == 204
        assert (await caller.get("/health")).status_code == 200


async def test_what_is_in_work_after_the_limit_is_answered_with_an_error() -> None:
    gate, body = Gate(), HeldBody()
    handle = Handle(stream=[gate.response() for _ in range(3)])
    served = router(handle, drain_timeout_s=0.05)
    async with calling(served) as caller:
        with requested(
            caller.post("/transcribe", json=RECORDING),
            caller.post("/transcribe", json=STREAMED),
            caller.post(
                "/transcribe", content=body, headers={"content-type": "audio/flac"}
            ),
            served.transcribe(RECORDING),
        ) as accepted:
            await in_work(served, handle, streams=3, requests=4)
            await served.drain()
            *over_http, by_handle = accepted
            plain, streamed, uploaded = await asyncio.gather(*over_http)
            with pytest.raises(ServiceUnavailableError):
                await by_handle
    for answer in (plain, uploaded):
        assert (answer.status_code, answer.json()["type"]) == (
            503,
            "service_unavailable",
        )
        assert answer.headers["retry-after"] == "5"
    assert plain.json()["error"] == WAITING
    assert WAITING in streamed.text.splitlines()[-2]
    assert all(response.cancelled for response in handle.responses["stream"])
    assert (await served.drain()).in_work == 0
