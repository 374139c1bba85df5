"""Streams of server-sent events, without Ray and without a port."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest
from starlette.types import Message

from deployments.api.events import begun, event_stream, message
from deployments.contract.answer import Event, Stage
from tests.support.asgi import LEAVES, Connection, LeavingConnection, http_scope

PING = b": ping\n\n"


async def streamed(
    connection: Connection,
    messages: AsyncGenerator[str, None],
    interval_s: float = 1000.0,
    resources: AsyncExitStack | None = None,
) -> None:
    response = event_stream(messages, resources or AsyncExitStack(), interval_s)
    await response(http_scope(), connection.receive, connection.send)


async def test_a_stream_begins_with_a_ping_and_ends_after_its_last_message() -> None:
    async def two() -> AsyncGenerator[str, None]:
        yield message("{}", "stage")
        yield message("[DONE]")

    connection = Connection()
    await streamed(connection, two())
    start = connection.sent[0]
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    assert connection.bodies == [
        PING,
        b"event: stage\ndata: {}\n\n",
        b"data: [DONE]\n\n",
        b"",
    ]
    assert not connection.sent[-1]["more_body"]


class Work:
    """A stream's generator that waits for ever after its first message."""

    def __init__(self) -> None:
        self.ended: BaseException | None = None

    async def messages(self) -> AsyncGenerator[str, None]:
        try:
            yield message("first")
            await asyncio.Event().wait()
        except BaseException as error:
            self.ended = error
            raise


async def test_pings_come_while_there_are_no_messages() -> None:
    connection, work = Connection(), Work()
    response = asyncio.ensure_future(streamed(connection, work.messages(), 0.01))
    async with asyncio.timeout(30):
        while len(connection.bodies) < 6:
            await asyncio.sleep(0.01)
    response.cancel()
    await asyncio.gather(response, return_exceptions=True)
    bodies = connection.bodies
    assert bodies[:2] == [PING, b"data: first\n\n"]
    assert set(bodies[2:]) == {PING}


@pytest.mark.parametrize("received", [LEAVES, RuntimeError("the proxy has died")])
async def test_the_work_of_a_caller_who_leaves_ends_before_the_response_does(
    received: Message | Exception,
) -> None:
    connection, work = Connection(), Work()
    response = asyncio.ensure_future(streamed(connection, work.messages()))
    await connection.until(b"data: first\n\n")
    assert work.ended is None
    connection.incoming.put_nowait(received)
    await response
    assert isinstance(work.ended, asyncio.CancelledError)


async def test_cancelling_the_response_ends_the_work() -> None:
    connection, work = Connection(), Work()
    response = asyncio.ensure_future(streamed(connection, work.messages()))
    await connection.until(b"data: first\n\n")
    response.cancel()
    with pytest.raises(asyncio.CancelledError):
        await response
    assert isinstance(work.ended, asyncio.CancelledError)


async def test_the_generator_is_closed_where_the_caller_does_not_take_a_message() -> (
    None
):
    closed = []

    async def many() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield message("x")
        except GeneratorExit:
            closed.append(True)
            raise

    class Stuck(Connection):
        async def send(self, sent: Message) -> None:
            await super().send(sent)
            if len(self.sent) > 3:
                await asyncio.Event().wait()

    connection = Stuck()
    response = asyncio.ensure_future(streamed(connection, many()))
    async with asyncio.timeout(30):
        while len(connection.sent) <= 3:
            await asyncio.sleep(0)
    connection.incoming.put_nowait(LEAVES)
    await response
    assert closed == [True]


async def test_an_error_in_the_generator_breaks_the_stream_off() -> None:
    async def broken() -> AsyncGenerator[str, None]:
        yield message("first")
        raise ValueError("broken")

    connection = Connection()
    with pytest.raises(ValueError, match="broken"):
        await streamed(connection, broken())
    assert connection.bodies == [PING, b"data: first\n\n"]
    assert connection.sent[-1]["more_body"]


async def test_nothing_goes_on_after_a_stream() -> None:
    connection, work = Connection(), Work()
    before = asyncio.all_tasks()
    response = asyncio.ensure_future(streamed(connection, work.messages()))
    await connection.until(b"data: first\n\n")
    connection.incoming.put_nowait(LEAVES)
    await response
    assert asyncio.all_tasks() == before


class Steps:
    """Work whose first event comes at once; notes when it is closed."""

    def __init__(self) -> None:
        self.closed = False

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            yield Stage(stage="downloading")
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_a_caller_who_leaves_before_the_first_message_ends_the_work() -> None:
    steps, resources = Steps(), AsyncExitStack()
    released: list[str] = []
    resources.callback(released.append, "the upload")
    # A reference from elsewhere must not keep the work alive.
    working = steps.events()
    events = await begun(working, resources)

    async def texts() -> AsyncGenerator[str, None]:
        async for event in events:
            yield message(event.model_dump_json())

    before = asyncio.all_tasks()
    await streamed(LeavingConnection(), texts(), resources=resources)
    assert steps.closed and released == ["the upload"]
    assert asyncio.all_tasks() == before


async def test_work_that_has_no_event_yet_is_not_waited_for_longer_than_allowed() -> (
    None
):
    steps = Steps()

    async def slow() -> AsyncGenerator[Event, None]:
        await may_begin.wait()
        async for event in steps.events():
            yield event

    may_begin = asyncio.Event()
    async with AsyncExitStack() as resources:
        events = await begun(slow(), resources, within_s=0.0)
        may_begin.set()
        assert await anext(events) == Stage(stage="downloading")


async def test_work_that_fails_at_once_raises_before_the_stream_begins() -> None:
    async def failing() -> AsyncGenerator[Event, None]:
        raise ValueError("at once")
        yield Stage(stage="downloading")

    async with AsyncExitStack() as resources:
        with pytest.raises(ValueError, match="at once"):
            await begun(failing(), resources)
