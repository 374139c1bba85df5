"""How jobs and stop signals are asked for: what counts as an outage, and the pauses between."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import ClientSession
from runpod.serverless.modules import rp_job

from deployments.runpod import sdk
from deployments.runpod.job_api import JobApi, Patience
from deployments.runpod.outage_log import Backoff
from tests.support import job_api
from tests.support.job_api import LIMIT_S
from tests.support.job_api import JobApi as JobApiStandIn


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with sdk.AsyncClientSession() as session:
        yield session


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections but never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/job-take/pod?gpu=G"


@pytest.fixture
def black_hole_url() -> Iterator[str]:
    """A server whose queue is full, so that a new connection hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            clients.append(client)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/job-take/pod?gpu=G"
        for client in clients:
            client.close()


async def take(api: JobApi, count: int = 1) -> list[dict[str, object]]:
    async with asyncio.timeout(LIMIT_S):
        return await api.take(count, asyncio.Event())


async def signals(api: JobApi, count: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(LIMIT_S):
        async for job_id in api.stop_signals():
            found.append(job_id)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("count", [1, 2])
async def test_a_job_without_input_reaches_the_handler_and_one_without_id_does_not(
    api: JobApi,
    stand_in: JobApiStandIn,
    caplog: pytest.LogCaptureFixture,
    count: int,
) -> None:
    stand_in.put({"id": "without-input"})
    assert await take(api, count) == [{"id": "without-input"}]
    stand_in.put({"input": {}})
    assert await take(api, count) == []
    assert "event=jobs_without_id count=1" in caplog.text
    assert "job_api_unreachable" not in caplog.text


async def test_stop_signals_come_one_by_one(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    for job in ("first", "second"):
        stand_in.cancel(job)
    assert await signals(api, 2) == ["first", "second"]


@pytest.mark.parametrize("open_s", [0.0, 0.1])
async def test_after_an_answer_without_stop_signals_there_is_always_a_pause(
    stand_in: JobApiStandIn,
    session: ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    open_s: float,
) -> None:
    monkeypatch.setattr(job_api, "POLL_S", open_s)
    # Each answer counts as slow, after which a poll for jobs would have no pause.
    api = JobApi(session, Patience(quick_answer_s=0, no_signal_s=0.3))
    polling = asyncio.ensure_future(signals(api, 1))
    while len(stand_in.calls) < 3:
        await asyncio.sleep(0.02)
    polling.cancel()
    times = [at for call, at in stand_in.calls if call == "stop"]
    # The stand-in notes the time when the call comes in.
    assert times[2] - times[0] > 2 * 0.3


async def test_after_a_quick_answer_without_jobs_there_is_a_pause(
    stand_in: JobApiStandIn, session: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_api, "POLL_S", 0.0)
    started = time.monotonic()
    # However busy the machine is, the answer counts as a quick one.
    api = JobApi(session, Patience(quick_answer_s=LIMIT_S))
    stopping = asyncio.Event()
    taking = asyncio.ensure_future(api.take(1, stopping))
    while not stand_in.calls:
        await asyncio.sleep(0.02)
    await asyncio.wait({taking}, timeout=0.5)
    assert not taking.done()
    stopping.set()
    assert await taking == []
    assert time.monotonic() - started < LIMIT_S


async def test_where_no_url_can_be_had_nothing_is_polled_and_the_log_says_so_once(
    api: JobApi,
    stand_in: JobApiStandIn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{stand_in.url}/other/pod?gpu=G")
    assert await signals(api, 1) == []
    assert stand_in.calls == []
    assert caplog.text.count("event=no_stop_signals") == 1


async def test_a_poll_that_stays_open_is_no_outage(
    session: ClientSession,
    silent_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rp_job, "JOB_GET_URL", silent_url)
    assert await take(JobApi(session, Patience(poll_s=0.2))) == []
    assert "job_api_unreachable" not in caplog.text


async def test_a_connection_that_takes_too_long_is_an_outage(
    session: ClientSession,
    black_hole_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rp_job, "JOB_GET_URL", black_hole_url)
    api = JobApi(session, Patience(Backoff(first_s=0.01), connect_s=0.2))
    assert await take(api) == []
    line = "event=job_api_unreachable call=job-take failures=1 error="
    assert f"{line}ConnectionTimeoutError" in caplog.text


def test_the_pauses_are_the_sdks_own() -> None:
    patience = Patience()
    assert patience.no_signal_s == 1.0
    assert patience.too_many_requests_s == 5.0
    assert patience.connect_s < patience.poll_s == 90.0 < math.inf
