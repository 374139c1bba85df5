"""What a job's result and its reports look like when they are posted; the whole way is in tests/end_to_end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from runpod.serverless.modules import rp_http

from deployments import runpod_jobs
from deployments.errors import InvalidRequestError
from deployments.runpod_jobs import MAX_CHUNK_BYTES, fitting
from tests.job_api import JobApi


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
        " recording without word_timestamps in parts (clip_timestamps)"
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
