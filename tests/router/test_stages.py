"""Stages among the events of a request."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments.contract.answer import Event, Progress, Stage
from deployments.contract.errors import WhisperServeError
from deployments.router.stages import OnStage, with_stages

DECODING = Stage(stage="decoding")
HALF = Progress(done=1.0, total=2.0)


async def test_stages_come_where_the_work_reports_them_even_while_it_waits() -> None:
    go_on = asyncio.Event()

    async def work(on_stage: OnStage) -> AsyncGenerator[Event, None]:
        on_stage(DECODING)
        await go_on.wait()
        yield HALF
        on_stage(Stage(stage="transcribing"))

    events = with_stages(work)
    assert await anext(events) == DECODING
    go_on.set()
    assert [event async for event in events] == [HALF, Stage(stage="transcribing")]


async def test_an_error_comes_after_the_stages_before_it() -> None:
    async def work(on_stage: OnStage) -> AsyncGenerator[Event, None]:
        on_stage(DECODING)
        raise WhisperServeError("no")
        yield HALF

    events = with_stages(work)
    assert await anext(events) == DECODING
    with pytest.raises(WhisperServeError, match="^no$"):
        await anext(events)


async def test_the_work_has_ended_when_its_reader_has_left() -> None:
    ended = []

    async def work(on_stage: OnStage) -> AsyncGenerator[Event, None]:
        on_stage(DECODING)
        try:
            await asyncio.Event().wait()
            yield HALF
        finally:
            ended.append(True)

    async with aclosing(with_stages(work)) as events:
        await anext(events)
    assert ended
