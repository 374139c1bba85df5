"""Server-sent events: a stream that begins at once and never falls silent.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.api.disconnect import cancel_on_disconnect
from deployments.contract.answer import Event
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


async def begun(
    events: AsyncGenerator[Event, None],
    resources: AsyncExitStack,
    within_s: float | None = None,
) -> AsyncGenerator[Event, None]:
    """Begin the work behind a stream; gives its events once the first one has come.

    resources: closes the events. A generator that nobody has asked for an item runs no code of its
        own when it is closed, so it can close nothing itself.
    within_s: after so many seconds without an event, they are given as well; None: wait for it

    Raises what fails until then.
    """
    await resources.enter_async_context(aclosing(events))
    first = asyncio.ensure_future(_first(events))
    resources.push_async_callback(_cancel, first)
    await asyncio.wait((first,), timeout=within_s)
    if first.done():
        first.result()
    return _with_first(first, events)


def event_stream(
    messages: AsyncGenerator[str, None],
    resources: AsyncExitStack,
    ping_interval_s: float = _PING_INTERVAL_S,
) -> StreamingResponse:
    """Answer with messages that are made by `message`; a ping comes first, and whenever none does.

    resources: what the messages need. They and the generator are closed before the response ends,
        also where the caller leaves before the first message.

    An error of the generator ends the connection, so that the caller sees that the stream is not
    whole.
    """
    return _EventStream(messages, resources, ping_interval_s)


def message(data: str, event: str | None = None) -> str:
    """One message of a stream.

    data: one line, as JSON is
    event: its type, for listeners of that name
    """
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {data}\n\n"


class _EventStream(StreamingResponse):
    media_type = MEDIA_TYPE

    def __init__(
        self,
        messages: AsyncGenerator[str, None],
        resources: AsyncExitStack,
        interval_s: float,
    ) -> None:
        self._messages = messages
        self._resources = resources
        self._texts = _with_pings(messages, interval_s)
        # nginx would collect the events.
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(self._texts, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._messages), aclosing(self._texts):
            # Nobody is left to read of the cancellation.
            with suppress(RequestCancelledError):
                await cancel_on_disconnect(receive, self.stream_response(send))


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


async def _cancel(task: "asyncio.Task[Event]") -> None:
    task.cancel()
    # Its error has been raised already, or comes after the caller has left.
    await asyncio.gather(task, return_exceptions=True)


async def _with_first(
    first: "asyncio.Task[Event]", events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    yield await first
    async for event in events:
        yield event


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
