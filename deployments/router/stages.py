"""What the service begins to do for a request, told from wherever it begins."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from deployments.contract.answer import Event, Stage

# Notes a stage, for those who wait for the request's events.
Tell = Callable[[Stage], None]


def untold(stage: Stage) -> None:
    """A `Tell` for requests whose stages nobody waits for."""


async def with_stages(
    work: Callable[[Tell], AsyncGenerator[Event, None]],
) -> AsyncGenerator[Event, None]:
    """The events of the work, and the stages that it tells on the way, as they come.

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
