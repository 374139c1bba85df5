"""From a job to its result, also where the service fails, on a router that answers as told.

The whole way is in tests/end_to_end.
"""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from deployments.config import AppArgs
from deployments.contract.answer import Event
from deployments.contract.errors import ModelUnavailableError
from deployments.runpod.handler import JobHandler
from deployments.runpod.job_api import JobApi
from deployments.runpod.settings import read_settings
from tests.runpod.examples import DONE, progress, segment
from tests.support.handles import Handle
from tests.support.job_api import JobApi as JobApiStandIn
from tests.support.routers import router

DIED = ActorDiedError()
LOST = "The service lost this job while it restarted: send it again"


class Router:
    """A handle whose streams give events, raise what is no event, and wait for ever at `...`."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self.waiting = asyncio.Event()

    @property
    def events(self) -> "Router":
        return self

    def options(self, *, stream: bool) -> "Router":
        assert stream
        return self

    @property
    def models(self) -> SimpleNamespace:
        """Of a Router that serves three models."""
        served = router(Handle(), "base", "base.en", "turbo", running=0)
        return SimpleNamespace(remote=served.models)

    def remote(
        self, request: Any, request_id: str, *, segments: bool, progress: bool
    ) -> "Stream":
        self.calls.append((request, request_id, segments, progress))
        return Stream(self, self.streams.pop(0))


class Stream:
    def __init__(self, router: Router, items: list[Any]) -> None:
        self._router, self._items = router, iter(items)

    def cancel(self) -> None:
        self._router.cancelled += 1

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if item is ...:
            self._router.waiting.set()
            await asyncio.Event().wait()
        if isinstance(item, BaseException):
            raise item
        return cast(Event, item)


def handler(
    router: Router, api: JobApi | None = None, **environment: str
) -> JobHandler:
    return JobHandler(cast(Any, router), read_settings(environment), AppArgs(), api)


async def result_of(
    router: Router, api: JobApi | None = None, **job_input: Any
) -> dict[str, Any]:
    job = {"id": "job", "input": {"audio": "x"} | job_input}
    return await handler(router, api).handle(job)


async def test_the_result_is_the_answer_of_the_last_event() -> None:
    router = Router([progress(10), DONE])
    assert await result_of(router) == DONE.result.model_dump()
    assert router.calls == [({"audio": "x"}, "job", False, True)]
    assert router.cancelled == 0


async def test_segments_are_asked_for_and_posted_where_they_are_to_be_streamed(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    router = Router([segment(0), DONE])
    assert await result_of(router, api, stream=True) == DONE.result.model_dump()
    assert router.calls == [({"audio": "x"}, "job", True, True)]
    [chunk] = stand_in.of("job", "stream")
    assert chunk.body["output"]["events"] == [segment(0).model_dump()]


async def test_a_job_is_tried_once_more_when_the_router_dies() -> None:
    router = Router([progress(10), DIED], [DONE])
    assert await result_of(router) == DONE.result.model_dump()
    # The second attempt came to its end, so there is nothing to cancel.
    assert router.cancelled == 1


async def test_a_job_whose_router_dies_twice_is_told_to_be_sent_again() -> None:
    assert await result_of(Router([DIED], [DIED])) == {"error": LOST}


async def test_a_job_whose_segments_have_gone_out_is_not_tried_again() -> None:
    router = Router([segment(0), DIED], [DONE])
    assert await result_of(router, stream=True) == {"error": LOST}
    assert len(router.calls) == 1


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (
            RayTaskError(
                "events", "traceback", ModelUnavailableError("base", "no room")
            ).as_instanceof_cause(),
            "Model 'base' is not available: no room",
        ),
        (ValueError("of a transcript"), "Internal error; the worker's log names it"),
        (asyncio.CancelledError(), LOST),
    ],
)
async def test_whatever_goes_wrong_becomes_a_short_text(
    raised: BaseException, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router([raised])
    assert await result_of(router) == {"error": text}
    assert router.cancelled == 1
    assert "of a transcript" not in caplog.text


@pytest.mark.parametrize(
    ("job_input", "text"),
    [
        ("jfk.flac", "The job's input must be a JSON object"),
        ({"audio": "x", "stream": "maybe"}, "Invalid stream: must be true or false"),
    ],
)
async def test_an_input_that_is_none_is_refused(job_input: Any, text: str) -> None:
    jobs = handler(Router())
    assert await jobs.handle({"id": "job", "input": job_input}) == {"error": text}


async def test_no_result_at_all_is_an_error() -> None:
    result = await result_of(Router([progress(10)]))
    assert result == {"error": "The model gave no result"}


async def test_a_result_over_the_limit_loses_its_tokens() -> None:
    router = Router([DONE])
    jobs = handler(router, WHISPER_MAX_RESULT_BYTES="1000")
    result = await jobs.handle({"id": "job", "input": {"audio": "x"}})
    assert "tokens" not in result["segments"][0]


async def test_cancelling_a_job_stops_its_work() -> None:
    router = Router([progress(10), ...])
    job = asyncio.ensure_future(result_of(router))
    await router.waiting.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await asyncio.sleep(0)
    assert router.cancelled == 1


async def test_a_job_that_is_cancelled_while_its_last_segments_go_out_gives_no_result(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    posted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def refuse(_: object) -> tuple[int, str]:
        loop.call_soon_threadsafe(posted.set)
        return 500, "later"

    stand_in.refuse = refuse
    router = Router([segment(0), DONE])
    job = asyncio.ensure_future(result_of(router, api, stream=True))
    await posted.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_when_the_service_dies_jobs_in_work_and_jobs_to_come_are_told() -> None:
    router = Router([progress(10), ...])
    jobs = handler(router)
    job = {"id": "job", "input": {"audio": "x"}}
    in_work = asyncio.ensure_future(jobs.handle(job))
    await router.waiting.wait()
    jobs.fail_all()
    died = {
        "error": "The worker's service has died during this job: send the job again"
    }
    assert await in_work == died
    assert await jobs.handle(job) == died
    assert len(router.calls) == 1


async def test_the_environments_defaults_reach_a_request_that_is_wrapped_twice() -> (
    None
):
    router = Router([DONE])
    jobs = handler(router, WHISPER_LANGUAGE="pt")
    await jobs.handle({"id": "job", "input": {"input": {"audio": "x"}}})
    assert router.calls[0][0] == {"audio": "x", "language": "pt"}
