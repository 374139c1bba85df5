"""Stages of a request, from wherever they begin, among the events that its caller reads."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from deployments.contract.answer import Event, Stage

# Called when a stage begins.
OnStage = Callable[[Stage], None]


def ignore_stage(stage: Stage) -> None:
    """The `OnStage` of a request whose caller wants no stages."""


async def with_stages(
    work: Callable[[OnStage], AsyncGenerator[Event, None]],
) -> AsyncGenerator[Event, None]:
    """The events of the work, and between them the stages that the work reports, as they come.

    Closing this generator ends the work.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run() -> None:
        async for event in work(events.put_nowait):
            events.put_nowait(event)

    running = asyncio.ensure_future(run())
    running.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
