"""Requests to an ASGI application whose scope and messages a test chooses, without a client."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

LOOPBACK = ("127.0.0.1", 8000)
LEAVES: Message = {"type": "http.disconnect"}

Headings = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What was answered. reads: how many messages the application has received"""

    status: int
    headers: Headers
    body: bytes
    reads: int

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


def http_scope(
    method: str = "GET",
    path: str = "/",
    headers: Headings = (),
    *,
    root_path: str = "",
    server: tuple[str, int | None] | None = LOOPBACK,
) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": [
            (name.lower().encode(), value.encode("latin-1")) for name, value in headers
        ],
        "server": server,
    }


def body_message(body: bytes, more_body: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


class Connection:
    """One request's connection.

    incoming: what the application will receive; an exception is raised there. When all is received,
        the caller stays and says nothing.
    sent: what the application has sent
    """

    def __init__(self, *incoming: Message | Exception) -> None:
        self.incoming: asyncio.Queue[Message | Exception] = asyncio.Queue()
        for message in incoming:
            self.incoming.put_nowait(message)
        self.sent: list[Message] = []
        self._reads = 0

    async def receive(self) -> Message:
        self._reads += 1
        message = await self.incoming.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        """The pieces of the answer's body."""
        return [message.get("body", b"") for message in self.sent[1:]]

    @property
    def answer(self) -> Answer:
        """What was sent; status 0: nothing."""
        nothing: Message = {"status": 0, "headers": []}
        start = self.sent[0] if self.sent else nothing
        headers = Headers(raw=start["headers"])
        return Answer(start["status"], headers, b"".join(self.bodies), self._reads)

    async def until(self, body: bytes) -> None:
        """Wait until this piece of the answer's body was sent."""
        async with asyncio.timeout(30):
            while body not in self.bodies:
                await asyncio.sleep(0)


class LeavingConnection(Connection):
    """A connection whose caller leaves as soon as the answer begins."""

    async def send(self, message: Message) -> None:
        await super().send(message)
        self.incoming.put_nowait(LEAVES)
        await asyncio.Event().wait()


class _Upload(Connection):
    """A connection whose body comes piece by piece, each only when it is asked for."""

    def __init__(self, pieces: AsyncIterator[bytes], end: Message) -> None:
        super().__init__(end)
        self._pieces = pieces

    async def receive(self) -> Message:
        piece = await anext(self._pieces, None)
        if piece is None:
            return await super().receive()
        self._reads += 1
        return body_message(piece, more_body=True)


def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    headers: Headings = (),
    *,
    root_path: str = "",
    server: tuple[str, int | None] | None = LOOPBACK,
    body: bytes = b"",
) -> Answer:
    """Send a request whose body is whole, and wait for its answer."""
    connection = Connection(body_message(body))
    scope = http_scope(method, path, headers, root_path=root_path, server=server)
    asyncio.run(app(scope, connection.receive, connection.send))  # type: ignore[arg-type]
    return connection.answer


async def post(
    app: ASGIApp,
    path: str,
    headers: dict[str, str],
    pieces: Iterable[bytes] | AsyncIterator[bytes],
    *,
    leaves: bool = False,
) -> Answer:
    """Send a request whose body comes piece by piece, and wait for its answer.

    leaves: whether the caller leaves after the last piece, instead of ending the body with it
    """
    pieces = pieces if isinstance(pieces, AsyncIterator) else _each(pieces)
    connection = _Upload(pieces, LEAVES if leaves else body_message(b""))
    scope = http_scope("POST", path, headers.items())
    await app(scope, connection.receive, connection.send)
    return connection.answer


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
