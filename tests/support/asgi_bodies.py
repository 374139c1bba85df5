"""A caller of an ASGI application whose body comes piece by piece, as a test gives it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message


@dataclass
class Exchange:
    """One request and its answer.

    pieces_read: how many pieces of the body the application has asked for
    """

    status: int = 0
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    pieces_read: int = 0

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


async def post(
    app: ASGIApp,
    path: str,
    headers: dict[str, str],
    pieces: Iterable[bytes] | AsyncIterator[bytes],
    *,
    leaves: bool = False,
) -> Exchange:
    """Send a request and wait for its answer.

    leaves: whether the caller leaves after the last piece, instead of ending the body with it
    """
    exchange = Exchange()
    left = pieces if isinstance(pieces, AsyncIterator) else _each(pieces)
    ended = False

    async def receive() -> Message:
        nonlocal ended
        if ended:
            await asyncio.Event().wait()
        piece = await anext(left, None)
        if piece is None and leaves:
            return {"type": "http.disconnect"}
        if piece is None:
            ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        exchange.pieces_read += 1
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            exchange.headers = Headers(raw=message["headers"])
        else:
            exchange.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
    }
    await app(scope, receive, send)
    return exchange


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
