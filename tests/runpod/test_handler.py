"""What a job's result and its reports look like when they are posted, and what becomes of a job when the service fails,
on a router that answers as told; the whole way is in tests/end_to_end.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from runpod.serverless.modules import rp_http

from deployments.config import AppArgs
from deployments.contract.errors import InvalidRequestError, ModelUnavailableError
from deployments.runpod import handler as runpod_jobs
from deployments.runpod.handler import MAX_CHUNK_BYTES, JobHandler, fitting
from deployments.runpod.settings import read_settings
from tests.support.job_api import JobApi


def result(segments: int, tokens: int = 100, text: str = "ß" * 50) -> dict[str, Any]:
    return {
        "segments": [
            {"id": number, "text": text, "tokens": [50000] * tokens}
            for number in range(segments)
        ],
        "transcription": "short",
    }


def sent(answer: dict[str, Any]) -> int:
    """Bytes, as the SDK sends them."""
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode())


def test_a_result_within_the_limit_is_sent_as_it_is() -> None:
    answer = result(10)
    assert fitting(answer, sent(answer)) is answer


def test_a_result_over_the_limit_loses_its_tokens_and_says_so() -> None:
    answer = result(10)
    shortened = fitting(answer, sent(answer) - 1)
    assert all("tokens" not in segment for segment in shortened["segments"])
    assert shortened["segments"][3]["text"] == "ß" * 50
    assert "tokens" in shortened["note"]
    assert shortened["transcription"] == "short"
    assert "tokens" in answer["segments"][0]


def test_a_result_that_is_too_large_without_tokens_is_an_error_that_says_what_to_do() -> (
    None
):
    answer = result(10_000, tokens=1) | {"word_timestamps": []}
    with pytest.raises(InvalidRequestError) as caught:
        fitting(answer, 1_000_000)
    assert str(caught.value) == (
        "The result takes 1.3 MB, more than the 1 MB that can be sent: transcribe the"
        " recording without word_timestamps, or in parts (clip_timestamps)"
    )


def test_what_is_no_json_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fitting({"segments": [], "duration": float("nan")}, 1000)


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobApi]:
    with JobApi() as api:
        base = f"{api.url}/v2/endpoint"
        monkeypatch.setattr(runpod_jobs, "IS_LOCAL_TEST", False)
        monkeypatch.setattr(rp_http, "JOB_DONE_URL", f"{base}/job-done/pod/$ID?gpu=G")
        monkeypatch.setattr(
            rp_http, "JOB_STREAM_URL", f"{base}/job-stream/pod/$ID?gpu=G"
        )
        yield api


def progress(done: float) -> dict[str, Any]:
    return {"event": "progress", "done": done, "total": 200.0}


def segment(number: int, text: str = "") -> dict[str, Any]:
    return {"event": "segment", "segment": {"id": number, "text": text}}


async def test_progress_is_told_now_and_then_and_only_forwards(
    api: JobApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_jobs, "PROGRESS_INTERVAL_S", 0.2)
    async with runpod_jobs._reports({"id": "job"}, False) as reports:
        for done in [*range(10, 100, 5), 30, 40, *range(100, 200, 10)]:
            reports.add(progress(done))
            await asyncio.sleep(0.05)
    told = [post.body for post in api.of("job", "progress")]
    assert 3 <= len(told) <= 12
    assert {body["status"] for body in told} == {"IN_PROGRESS"}
    seconds = [body["output"]["audio_seconds_done"] for body in told]
    assert seconds == sorted(set(seconds))
    last = told[-1]["output"]
    assert last["audio_seconds"] == 200
    assert last["progress_percent"] == last["audio_seconds_done"] / 2


async def test_no_progress_lands_after_the_reports_are_closed(
    api: JobApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_jobs, "PROGRESS_INTERVAL_S", 0)
    for number in range(20):
        job = f"job-{number}"
        async with runpod_jobs._reports({"id": job}, False) as reports:
            reports.add(progress(10))
            await asyncio.sleep(number / 1000)
        landed = len(api.of(job))
        await asyncio.sleep(0.05)
        assert len(api.of(job)) == landed


async def test_all_segments_are_streamed_in_order_in_chunks_that_are_small_enough(
    api: JobApi,
) -> None:
    async with runpod_jobs._reports({"id": "job"}, True) as reports:
        for number in range(100):
            reports.add(segment(number, "ß" * 25_000))
        await asyncio.sleep(0)
        reports.add(segment(100))
    chunks = api.of("job", "stream")
    assert max(chunk.size for chunk in chunks) <= MAX_CHUNK_BYTES + 100
    assert len(chunks) >= 5
    told = [s["id"] for chunk in chunks for s in chunk.body["output"]["segments"]]
    assert told == list(range(101))


async def test_a_chunk_that_is_not_taken_at_once_is_posted_again(api: JobApi) -> None:
    failures = iter([500, 503])

    def refuse(_: object) -> tuple[int, str] | None:
        status = next(failures, None)
        return (status, "") if status else None

    api.refuse = refuse
    async with runpod_jobs._reports({"id": "job"}, True) as reports:
        reports.add(segment(0))
        reports.add(segment(1))
    assert [post.status for post in api.of("job", "stream")] == [500, 503, 200]


async def test_a_stream_that_is_refused_does_not_hold_up_the_job(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    api.refuse = lambda post: (400, "no stream")
    async with runpod_jobs._reports({"id": "job"}, True) as reports:
        reports.add(segment(0))
    assert "event=stream_not_taken job=job segments=1 error=HTTP_400" in caplog.text


class Router:
    """A handle whose streams give events, raise what is no event, and wait for ever at `...`."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.requests: list[dict[str, Any]] = []
        self.cancelled = 0

    @property
    def stream(self) -> "Router":
        return self

    def options(self, **_: Any) -> "Router":
        return self

    def remote(self, request: dict[str, Any], *_: Any) -> "Stream":
        self.requests.append(request)
        return Stream(self, self.streams.pop(0))


class Stream:
    def __init__(self, router: Router, items: list[Any]) -> None:
        self._router, self._items = router, iter(items)

    def cancel(self) -> None:
        self._router.cancelled += 1

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> dict[str, Any]:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if item is ...:
            await asyncio.sleep(1000)
        if isinstance(item, BaseException):
            raise item
        return cast(dict[str, Any], item)


DONE = {"event": "result", "result": result(1)}
DIED = ActorDiedError()
LOST = "The service lost this job while it restarted: send it again"


def handler(router: Router, **environment: str) -> JobHandler:
    return JobHandler(cast(Any, router), read_settings(environment), AppArgs())


async def answer_of(router: Router, **job_input: Any) -> dict[str, Any]:
    job = {"id": "job", "input": {"audio": "x"} | job_input}
    return await handler(router).handle(job)


async def test_a_job_is_tried_once_more_when_the_router_dies() -> None:
    router = Router([progress(10), DIED], [DONE])
    assert await answer_of(router) == DONE["result"]
    assert router.cancelled == 2


async def test_a_job_whose_router_dies_twice_is_told_to_be_sent_again() -> None:
    assert await answer_of(Router([DIED], [DIED])) == {"error": LOST}


async def test_a_job_whose_segments_have_gone_out_is_not_tried_again(
    api: JobApi,
) -> None:
    router = Router([segment(0), DIED], [DONE])
    assert await answer_of(router, stream=True) == {"error": LOST}
    assert len(router.requests) == 1


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (
            RayTaskError(
                "stream", "traceback", ModelUnavailableError("base", "no room")
            ).as_instanceof_cause(),
            "Model 'base' is not available: no room",
        ),
        (ValueError("of a transcript"), "Internal error; the worker's log names it"),
        (asyncio.CancelledError(), LOST),
    ],
)
async def test_whatever_goes_wrong_becomes_a_short_text(
    raised: BaseException, text: str
) -> None:
    router = Router([raised])
    assert await answer_of(router) == {"error": text}
    assert router.cancelled == 1


async def test_no_result_at_all_is_an_error() -> None:
    answer = await answer_of(Router([progress(10)]))
    assert answer == {"error": "The service gave no result"}


async def test_cancelling_a_job_stops_its_work() -> None:
    router = Router([progress(10), ...])
    job = asyncio.ensure_future(answer_of(router))
    await asyncio.sleep(0.05)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert router.cancelled == 1


async def test_a_job_that_is_cancelled_while_its_last_segments_go_out_gives_no_result(
    api: JobApi,
) -> None:
    api.refuse = lambda post: (500, "later")
    job = asyncio.ensure_future(answer_of(Router([segment(0), DONE]), stream=True))
    await asyncio.sleep(0.2)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_when_the_service_dies_jobs_in_work_and_jobs_to_come_are_told() -> None:
    router = Router([progress(10), ...])
    jobs = handler(router)
    job = {"id": "job", "input": {"audio": "x"}}
    in_work = asyncio.ensure_future(jobs.handle(job))
    await asyncio.sleep(0.05)
    jobs.fail_all()
    died = {
        "error": "The worker's service has died during this job: send the job again"
    }
    assert await in_work == died
    assert await jobs.handle(job) == died
    assert len(router.requests) == 1


async def test_the_environments_defaults_reach_a_request_that_is_wrapped_twice() -> (
    None
):
    router = Router([DONE])
    jobs = handler(router, WHISPER_LANGUAGE="pt")
    await jobs.handle({"id": "job", "input": {"input": {"audio": "x"}}})
    assert router.requests == [{"audio": "x", "language": "pt"}]
