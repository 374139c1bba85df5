"""What is posted of a job while it runs, against a stand-in of RunPod's job API."""

import asyncio
from typing import Any

import pytest

from deployments.contract.answer import Progress, SegmentEvent, Stage
from deployments.runpod.job_api import JobApi
from deployments.runpod.reports import MAX_CHUNK_BYTES, Reports
from tests.runpod.examples import progress, segment
from tests.support.job_api import LIMIT_S
from tests.support.job_api import JobApi as JobApiStandIn


async def test_progress_is_reported_in_order_and_only_forwards(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    reports = Reports(api, "job", interval_s=0)
    async with reports.posted():
        for done in [*range(10, 100, 5), 30, 40, *range(100, 200, 10)]:
            reports.add(progress(done))
            await asyncio.sleep(0.01)
    posted = [post.body for post in stand_in.of("job", "progress")]
    assert len(posted) >= 2
    assert {body["status"] for body in posted} == {"IN_PROGRESS"}
    seconds = [body["output"]["audio_seconds_done"] for body in posted]
    assert seconds == sorted(set(seconds))
    last = posted[-1]["output"]
    assert last["audio_seconds"] == 200
    assert last["progress_percent"] == last["audio_seconds_done"] / 2


async def test_progress_is_not_reported_before_the_interval_has_passed(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    reports = Reports(api, "job", interval_s=1000)
    async with reports.posted():
        for done in range(10, 100, 10):
            reports.add(progress(done))
            await asyncio.sleep(0)
    assert not stand_in.of("job")


async def test_no_progress_lands_after_the_reports_are_closed(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    for number in range(20):
        job = f"job-{number}"
        reports = Reports(api, job, interval_s=0)
        async with reports.posted():
            reports.add(progress(10))
            await asyncio.sleep(number / 1000)
        landed = len(stand_in.of(job))
        await asyncio.sleep(0.05)
        assert len(stand_in.of(job)) == landed


async def test_a_report_of_progress_that_is_refused_does_not_stop_the_next_ones(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    stand_in.refuse = lambda post: (400, "no") if len(stand_in.posts) == 0 else None
    reports = Reports(api, "job", interval_s=0)
    async with reports.posted():
        for done in (10, 20):
            reports.add(progress(done))
            async with asyncio.timeout(LIMIT_S):
                while len(stand_in.posts) < done / 10:
                    await asyncio.sleep(0.01)
    assert [post.status for post in stand_in.of("job")] == [400, 200]


async def test_all_segments_are_streamed_in_order_in_chunks_that_are_small_enough(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    reports = Reports(api, "job", streamed=True)
    async with reports.posted():
        for number in range(100):
            reports.add(segment(number, "ß" * 25_000))
        await asyncio.sleep(0)
        reports.add(segment(100))
    chunks = stand_in.of("job", "stream")
    assert max(chunk.size for chunk in chunks) <= MAX_CHUNK_BYTES + 100
    assert len(chunks) >= 5
    events = [event for chunk in chunks for event in chunk.body["output"]["events"]]
    assert [event["segment"]["id"] for event in events] == list(range(101))
    assert events[0] == segment(0, "ß" * 25_000).model_dump()


async def test_a_stream_holds_the_events_as_the_handle_gives_them(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    events: list[Stage | Progress | SegmentEvent] = [
        Stage(stage="queued", duration=200.0, windows_ahead=3),
        Stage(stage="transcribing", duration=200.0),
        progress(10),
        segment(0),
    ]
    reports = Reports(api, "job", streamed=True)
    async with reports.posted():
        for event in events:
            reports.add(event)
    chunks = stand_in.of("job", "stream")
    posted = [event for chunk in chunks for event in chunk.body["output"]["events"]]
    assert posted == [event.model_dump() for event in events]


async def test_a_stage_that_lasts_is_reported_and_goes_with_the_progress(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    async def reported(number: int) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while len(stand_in.of("job", "progress")) < number:
                await asyncio.sleep(0.01)
        output = stand_in.of("job", "progress")[-1].body["output"]
        return dict(output)

    reports = Reports(api, "job", interval_s=0.05)
    async with reports.posted():
        reports.add(Stage(stage="queued", duration=200.0, windows_ahead=3))
        assert await reported(1) == {
            "stage": "queued",
            "windows_ahead": 3,
            "audio_seconds": 200.0,
        }
        reports.add(Stage(stage="transcribing", duration=200.0))
        assert (await reported(2))["stage"] == "transcribing"
        reports.add(progress(50))
        assert await reported(3) == {
            "stage": "transcribing",
            "progress_percent": 25.0,
            "audio_seconds_done": 50,
            "audio_seconds": 200,
        }
        # The replica died: the job begins anew, and its progress does not go back.
        reports.add(Stage(stage="starting_model", duration=200.0))
        reports.add(progress(10))
        restarted = await reported(4)
        assert restarted["stage"] == "starting_model"
        assert restarted["progress_percent"] == 25.0


async def test_a_chunk_that_is_not_taken_at_once_is_posted_again(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    failures = iter([500, 503])

    def refuse(_: object) -> tuple[int, str] | None:
        status = next(failures, None)
        return (status, "") if status else None

    stand_in.refuse = refuse
    reports = Reports(api, "job", streamed=True)
    async with reports.posted():
        reports.add(segment(0))
        reports.add(segment(1))
    assert [post.status for post in stand_in.of("job", "stream")] == [500, 503, 200]


async def test_a_stream_that_is_refused_does_not_hold_up_the_job(
    api: JobApi, stand_in: JobApiStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.refuse = lambda post: (400, "no stream")
    reports = Reports(api, "job", streamed=True)
    async with reports.posted():
        reports.add(segment(0))
    assert "event=stream_rejected job=job pieces=1 error=HTTP_400" in caplog.text
    assert len(stand_in.of("job")) == 1


async def test_without_a_job_api_nothing_is_posted() -> None:
    reports = Reports(None, "job", streamed=True, interval_s=0)
    async with reports.posted():
        reports.add(segment(0))
        reports.add(progress(10))


async def test_a_stream_of_texts_goes_out_in_order_in_chunks_that_are_small_enough(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    texts = [f"{number} {'ß' * 25_000}" for number in range(100)] + [
        "\U0001f442" * 500_000
    ]
    reports = Reports(api, "job")
    async with reports.posted():
        for text in texts:
            reports.add_text(text)
    chunks = stand_in.of("job", "stream")
    assert max(chunk.size for chunk in chunks) <= MAX_CHUNK_BYTES + 100
    assert "".join(chunk.body["output"] for chunk in chunks) == "".join(texts)
