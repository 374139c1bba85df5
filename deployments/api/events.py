"""Server-sent events: a stream that begins at once and never falls silent.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.responses import StreamingResponse

# One event in an OpenAPI description, as FastAPI describes its own.
EVENT_SCHEMA = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}

# A comment, which clients ignore. Gateways cut connections on which nothing is sent.
_PING = ": ping\n\n"
_PING_INTERVAL_S = 10.0


def event_stream(
    messages: AsyncGenerator[str, None], ping_interval_s: float = _PING_INTERVAL_S
) -> StreamingResponse:
    """Answer with messages that are made by `message`; a ping comes first, and whenever none does.

    The generator is closed when the caller leaves.
    """
    return StreamingResponse(
        _with_pings(messages, ping_interval_s),
        media_type="text/event-stream",
        # nginx would collect the events.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def message(data: str, event: str | None = None) -> str:
    """One message of a stream.

    data: one line, as JSON is
    event: its type, for listeners of that name
    """
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {data}\n\n"


async def _with_pings(
    messages: AsyncGenerator[str, None], interval_s: float
) -> AsyncIterator[str]:
    queue: asyncio.Queue[str | None] = asyncio.Queue(1)

    async def pump() -> None:
        try:
            async with aclosing(messages):
                async for text in messages:
                    await queue.put(text)
        finally:
            await queue.put(None)

    pumping = asyncio.ensure_future(pump())
    try:
        yield _PING
        while True:
            try:
                async with asyncio.timeout(interval_s):
                    text = await queue.get()
            except TimeoutError:
                text = _PING
            if text is None:
                break
            yield text
        await pumping
    finally:
        pumping.cancel()
