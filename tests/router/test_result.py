"""The answer that a request's events end with."""

from collections.abc import AsyncGenerator

import pytest

from deployments.contract.answer import Event, Stage
from deployments.contract.errors import WhisperServeError
from deployments.router.result import answer_of
from tests.runpod.examples import DONE, progress, segment

EVENTS: list[Event] = [Stage(stage="decoding"), progress(1), segment(0), DONE]


async def events(*items: Event) -> AsyncGenerator[Event, None]:
    for item in items:
        yield item


async def test_the_answer_is_the_result_in_the_last_event() -> None:
    assert await answer_of(events(*EVENTS)) == DONE.result


async def test_every_event_is_passed_on_in_order() -> None:
    seen: list[Event] = []

    async def on_event(event: Event) -> None:
        seen.append(event)

    await answer_of(events(*EVENTS), on_event)
    assert seen == EVENTS


async def test_events_without_a_result_are_an_error() -> None:
    with pytest.raises(WhisperServeError, match="^The model gave no result$"):
        await answer_of(events(*EVENTS[:-1]))


async def test_the_events_are_closed_where_passing_one_on_fails() -> None:
    closed = []

    async def watched() -> AsyncGenerator[Event, None]:
        try:
            yield DONE
        finally:
            closed.append(True)

    async def fail(_: Event) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="^no$"):
        await answer_of(watched(), fail)
    assert closed
