"""The events of a request, from the engine's thread to the caller."""

import asyncio
from typing import Any

import pytest

from deployments.contract.answer import Progress, SegmentEvent, Stage
from deployments.replica.event_queue import EventQueue
from deployments.replica.transcript import Transcript

TRANSCRIPT = Transcript([], None, "", "en", None, "cpu", 0.0, 0.0, 1.0, [])
SEGMENT = {
    "id": 0,
    "seek": 0,
    "start": 0.0,
    "end": 1.0,
    "text": " One",
    "tokens": [1],
    "temperature": 0.0,
    "avg_logprob": -0.5,
    "compression_ratio": 1.0,
    "no_speech_prob": 0.1,
}


def queue(*, segments: bool = True, progress: bool = True) -> EventQueue:
    return EventQueue(segments=segments, progress=progress, words=False)


async def read(events: EventQueue, duration_s: float = 2.0) -> list[Any]:
    """What comes of a transcription whose engine calls back from a thread."""

    def work() -> Transcript:
        calls = events.callbacks(duration_s)
        for name, arguments in (
            ("on_progress", (0.0, 2.0)),
            ("on_start", ()),
            ("on_segments", ([SEGMENT],)),
            ("on_progress", (2.0, 2.0)),
        ):
            if calls[name] is not None:
                calls[name](*arguments)
        return TRANSCRIPT

    working = asyncio.ensure_future(asyncio.to_thread(work))
    return [event async for event in events.until_done(working)]


async def test_events_come_in_order_and_the_transcript_last() -> None:
    start, begun, segment, done, last = await read(queue())
    assert start == Stage(stage="transcribing", duration=2.0)
    assert (begun, done) == (
        Progress(done=0.0, total=2.0),
        Progress(done=2.0, total=2.0),
    )
    assert isinstance(segment, SegmentEvent)
    assert last is TRANSCRIPT


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        ({"segments": False, "progress": False}, [Transcript]),
        ({"segments": True, "progress": False}, [SegmentEvent, Transcript]),
        ({"segments": False}, [Stage, Progress, Progress, Transcript]),
    ],
)
async def test_only_the_events_that_are_wanted_come(
    wanted: dict[str, bool], kinds: list[type]
) -> None:
    assert [type(event) for event in await read(queue(**wanted))] == kinds


@pytest.mark.parametrize("progress", [True, False])
async def test_waiting_for_a_slot_is_a_stage_of_the_progress(progress: bool) -> None:
    events = queue(segments=False, progress=progress)
    events.queued(2.0, 3)
    first, *_ = await read(events)
    waiting = Stage(stage="queued", duration=2.0, windows_ahead=3)
    assert (first == waiting) == progress


async def test_an_error_of_the_work_comes_after_its_events() -> None:
    events = queue()
    events.queued(2.0, 1)

    async def fail() -> Transcript:
        raise ValueError("no")

    reader = events.until_done(asyncio.ensure_future(fail()))
    assert isinstance(await anext(reader), Stage)
    with pytest.raises(ValueError, match="^no$"):
        await anext(reader)
