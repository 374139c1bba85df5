"""Large bodies through Serve, of whose proxy and replica the queues are Serve's own.

tests/end_to_end/ has Serve itself.
"""

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ray.serve._private.http_util import ASGIReceiveProxy, MessageQueue
from ray.serve._private.proxy import HTTPProxy
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.proxy_uploads import PacedBodies, ReportedBodies
from tests.support.asgi import (
    LEAVES,
    Answer,
    Connection,
    body_message,
    http_scope,
    post,
)

CHUNKED = {"transfer-encoding": "chunked"}
PIECE = b"x" * 65536
MIB = 1 << 20


class Serve:
    """Serve's proxy with an application in a replica; what passes between them is pickled.

    fetches: whether the replica runs already
    """

    def __init__(self, application: ASGIApp, fetches: bool = True) -> None:
        self._application = application
        self._fetches = fetches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = MessageQueue()
        proxy: Any = None  # The method below needs none.
        reading = asyncio.ensure_future(
            HTTPProxy.proxy_asgi_receive(proxy, receive, queue)
        )

        async def fetch(_: Any) -> bytes:
            # As a call of another process, this lets the other tasks run.
            await asyncio.sleep(0)
            await queue.wait_for_message()
            return pickle.dumps(queue.get_messages_nowait())

        async def send_to_proxy(message: Message) -> None:
            await send(pickle.loads(pickle.dumps(message)))

        scope = pickle.loads(pickle.dumps(scope))
        metadata: Any = None  # Serve's own names of the request.
        in_replica = ASGIReceiveProxy(scope, metadata, fetch)
        fetching = asyncio.ensure_future(
            in_replica.fetch_until_disconnect() if self._fetches else asyncio.sleep(0)
        )
        try:
            await self._application(scope, in_replica, send_to_proxy)
        finally:
            reading.cancel()
            fetching.cancel()


class Caller:
    """Sends a body, and counts how much of it was read."""

    def __init__(self, pieces: int = 10_000) -> None:
        self._pieces = pieces
        self.read_bytes = 0

    async def body(self) -> AsyncIterator[bytes]:
        for number in range(self._pieces):
            self.read_bytes += len(PIECE)
            yield bytes([number % 256]) + PIECE[1:]


async def settled(caller: Caller) -> int:
    """How much was read, when nothing more is."""
    before = -1
    while before != caller.read_bytes:
        before = caller.read_bytes
        for _ in range(1000):
            await asyncio.sleep(0)
    return before


Reading = Callable[[Receive], Awaitable[None]]


def application(reading: Reading) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reading(receive)
        await PlainTextResponse("done")(scope, receive, send)

    return app


async def never(receive: Receive) -> None:
    await asyncio.Event().wait()


async def one_piece(receive: Receive) -> None:
    await receive()
    await never(receive)


async def whole(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


@contextlib.asynccontextmanager
async def uploading(
    app: ASGIApp, caller: Caller, headers: dict[str, str] = CHUNKED
) -> AsyncIterator["asyncio.Future[Answer]"]:
    task = asyncio.ensure_future(post(app, "/", headers, caller.body()))
    try:
        yield task
    finally:
        task.cancel()


@pytest.mark.parametrize("reading", [never, one_piece])
@pytest.mark.parametrize(
    "headers", [CHUNKED, {"content-length": str(10_000 * len(PIECE))}]
)
def test_a_body_that_is_not_taken_is_not_read_from_the_caller(
    reading: Reading, headers: dict[str, str]
) -> None:
    async def check() -> None:
        caller = Caller()
        app = PacedBodies(Serve(ReportedBodies(application(reading))))
        async with uploading(app, caller, headers):
            assert await settled(caller) < 5 * MIB

    asyncio.run(check())


def test_without_this_serve_reads_a_body_without_end() -> None:
    async def check() -> None:
        caller = Caller(1000)
        async with uploading(Serve(application(never)), caller):
            assert await settled(caller) == 1000 * len(PIECE)

    asyncio.run(check())


@pytest.mark.parametrize("wrap", [ReportedBodies, lambda app: app])
def test_no_more_is_read_before_a_replica_fetches_it(
    wrap: Callable[[ASGIApp], ASGIApp],
) -> None:
    async def check() -> None:
        caller = Caller()
        app = PacedBodies(Serve(wrap(application(never)), fetches=False))
        async with uploading(app, caller):
            assert await settled(caller) < 5 * MIB

    asyncio.run(check())


@pytest.mark.parametrize("wrap", [ReportedBodies, lambda app: app])
def test_a_body_comes_whole_and_in_order(wrap: Callable[[ASGIApp], ASGIApp]) -> None:
    async def check() -> None:
        numbers: list[int] = []

        async def collect(receive: Receive) -> None:
            while (message := await receive()).get("more_body"):
                assert type(message) is dict
                numbers.append(message["body"][0])

        caller = Caller(1000)
        app = PacedBodies(Serve(wrap(application(collect))))
        async with uploading(app, caller) as answer:
            # The caller sees nothing of the reports.
            assert (await answer).body == b"done"
        assert numbers == [number % 256 for number in range(1000)]

    asyncio.run(check())


def test_a_refusal_does_not_wait_for_the_body() -> None:
    async def refuse(receive: Receive) -> None:
        await receive()

    async def check() -> None:
        caller = Caller()
        app = PacedBodies(Serve(ReportedBodies(application(refuse))))
        async with uploading(app, caller) as answer:
            assert (await answer).body == b"done"
            assert await settled(caller) < 5 * MIB

    asyncio.run(check())


def test_many_bodies_are_bounded_together() -> None:
    async def check() -> None:
        app = PacedBodies(Serve(ReportedBodies(application(never))))
        callers = [Caller(100) for _ in range(64)]
        async with contextlib.AsyncExitStack() as stack:
            for caller in callers:
                await stack.enter_async_context(uploading(app, caller))
            total = sum([await settled(caller) for caller in callers])
        assert 64 * MIB <= total < 64 * MIB + 64 * 2 * len(PIECE)

    asyncio.run(check())


def test_a_caller_who_leaves_after_the_body_is_noticed_at_once() -> None:
    async def check() -> None:
        left = asyncio.Event()

        async def wait_for_the_end(receive: Receive) -> None:
            await whole(receive)
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        # One piece that is larger than what many bodies may have on their way.
        caller = Connection(body_message(PIECE * 200), LEAVES)
        app = PacedBodies(Serve(ReportedBodies(application(wait_for_the_end))))
        scope = http_scope("POST", headers=[("content-length", "13107200")])
        await app(scope, caller.receive, caller.send)
        assert left.is_set()

    asyncio.run(check())


def test_a_small_body_is_not_reported() -> None:
    async def check() -> None:
        sent: list[str] = []

        async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
            async def note(message: Message) -> None:
                sent.append(message["type"])
                await send(message)

            await ReportedBodies(application(whole))(scope, receive, note)

        headers = {"content-length": str(len(PIECE))}
        async with uploading(PacedBodies(proxy), Caller(1), headers) as answer:
            await answer
        assert sent == ["http.response.start", "http.response.body"]

    asyncio.run(check())


def test_other_connections_than_http_are_left_alone() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": "websocket", "path": "/", "headers": []}
    caller = Connection({"type": "websocket.disconnect"})
    asyncio.run(PacedBodies(app)(scope, caller.receive, caller.send))
    assert seen == [{"type": "websocket", "path": "/", "headers": []}]
