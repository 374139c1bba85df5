"""The answer that a request's events end with."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from deployments.contract.answer import Answer, Event, Result
from deployments.contract.errors import WhisperServeError

OnEvent = Callable[[Event], Awaitable[None]]


async def answer_of(
    events: AsyncGenerator[Event, None], on_event: OnEvent | None = None
) -> Answer:
    """Read all events, and give the answer, which the last one holds.

    on_event: awaited with each event, the last one included

    Raises WhisperServeError where no event is a result, and what the events raise.
    """
    answer: Answer | None = None
    async with aclosing(events):
        # To the end, because a stream that is left early counts as cancelled.
        async for event in events:
            if isinstance(event, Result):
                answer = event.result
            if on_event is not None:
                await on_event(event)
    if answer is None:
        raise WhisperServeError("The model gave no result")
    return answer
