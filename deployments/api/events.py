"""Server-sent events: a stream that begins at once and never falls silent.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.api.disconnect import cancel_on_disconnect
from deployments.contract.errors import RequestCancelledError

MEDIA_TYPE = "text/event-stream"

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

    The generator is closed at the end and when the caller leaves. Its error ends the connection, so
    that the caller sees that the stream is not whole.
    """
    return _EventStream(messages, ping_interval_s)


def message(data: str, event: str | None = None) -> str:
    """One message of a stream.

    data: one line, as JSON is
    event: its type, for listeners of that name
    """
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {data}\n\n"


class _EventStream(StreamingResponse):
    media_type = MEDIA_TYPE

    def __init__(self, messages: AsyncGenerator[str, None], interval_s: float) -> None:
        self._messages = messages
        self._texts = _with_pings(messages, interval_s)
        # nginx would collect the events.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._texts, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # There is nobody left to be told.
        with suppress(RequestCancelledError):
            await cancel_on_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._messages), aclosing(self._texts):
            await self.stream_response(send)


async def _with_pings(
    messages: AsyncGenerator[str, None], interval_s: float
) -> AsyncGenerator[str, None]:
    yield _PING
    while True:
        coming = asyncio.ensure_future(_next(messages))
        try:
            while not (await asyncio.wait((coming,), timeout=interval_s))[0]:
                yield _PING
        finally:
            # Nothing happens here unless the stream is left.
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        text = coming.result()
        if text is None:
            return
        yield text


async def _next(messages: AsyncGenerator[str, None]) -> str | None:
    return await anext(messages, None)
