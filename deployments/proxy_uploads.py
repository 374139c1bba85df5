"""Large bodies on their way through Serve: read from the caller no faster than they are taken.

Serve's proxy reads a body as fast as the caller sends it, and the Router's process fetches it as
fast as the proxy has it. What the application has not taken yet lies in the memory of both. Here
the proxy waits with reading. The two halves are an extension of ASGI, in the way of the
specification: `PacedBodies` around the proxy names it in the scope, and `ReportedBodies` around the
application, where it finds the name, sends a message whenever it has taken a part of the body.

This module relies on Serve of ray 2.60, and a test names what it relies on:

-   The scope with its extensions, and messages of unknown types, pass between proxy and replica.
-   The proxy lets go of a message when the replica has fetched it. Bodies of other applications,
    and of those that do not read yet, are paced by that.
-   Proxy, middleware and queue belong to one event loop.

After such a message the proxy sends no answer of its own, and `proxy_answers` sends one instead.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXTENSION = "whisper_serve.body"
_TAKEN = f"{EXTENSION}.taken"

# How many bytes of one body are on their way; less where there are many, so that all bodies
# together are bounded as well.
_MOST_BYTES, _LEAST_BYTES = 4 << 20, 1 << 18
_ALL_BYTES = 64 << 20
# The application reports after so many bytes.
_REPORT_BYTES = _LEAST_BYTES // 2


class PacedBodies:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._incomplete: set[_Body] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, self._incomplete)
        extensions = {**(scope.get("extensions") or {}), EXTENSION: {}}
        self._incomplete.add(body)
        try:
            await self._app(
                {**scope, "extensions": extensions}, body.receive, body.send
            )
        finally:
            self._incomplete.discard(body)


class _Body:
    """One request's body in the proxy. Counts bytes since its beginning.

    incomplete: the bodies of which more is to come
    """

    def __init__(self, receive: Receive, send: Send, incomplete: set["_Body"]) -> None:
        self._receive, self._send, self._incomplete = receive, send, incomplete
        self._passed_on = 0
        self._fetched = 0
        # What the application says that it has taken; None as long as it says nothing.
        self._taken: int | None = None
        self._moved = asyncio.Event()

    async def receive(self) -> Message:
        # After the body nothing is held back: the proxy must learn at once that the caller leaves.
        while self in self._incomplete and self._on_the_way() > self._window():
            self._moved.clear()
            await self._moved.wait()
        message = await self._receive()
        size = len(message.get("body", b""))
        self._passed_on += size
        if not message.get("more_body", False):
            self._incomplete.discard(self)
        return _Piece(message, lambda: self._count_fetched(size))

    async def send(self, message: Message) -> None:
        if message["type"] == _TAKEN:
            self._taken = message["bytes"]
            self._moved.set()
        else:
            await self._send(message)

    def _window(self) -> int:
        """How many bytes may be on their way."""
        return min(_MOST_BYTES, max(_LEAST_BYTES, _ALL_BYTES // len(self._incomplete)))

    def _on_the_way(self) -> int:
        done = self._fetched if self._taken is None else self._taken
        return self._passed_on - done

    def _count_fetched(self, size: int) -> None:
        self._fetched += size
        self._moved.set()


class _Piece(dict[str, Any]):
    """A message for the proxy, and a function that is called when the proxy holds it no more.

    It is pickled as a plain dict, because other applications do not know this class.
    """

    def __init__(self, message: Message, on_release: Callable[[], None]) -> None:
        super().__init__(message)
        self._on_release = on_release

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

    def __del__(self) -> None:
        self._on_release()


class ReportedBodies:
    """ASGI middleware around the application, in the Router's process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_paced = EXTENSION in (scope.get("extensions") or {})
        if not is_paced or not _may_be_large(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        # What the application has, and what the proxy knows of that. A piece is taken when the next
        # one is asked for.
        had = reported = 0

        async def report() -> None:
            nonlocal reported
            await send({"type": _TAKEN, "bytes": had})
            reported = had

        async def receive_and_report() -> Message:
            nonlocal had
            if had - reported >= _REPORT_BYTES:
                await report()
            message = await receive()
            had += len(message.get("body", b""))
            return message

        # From now on the proxy goes by the reports, and not by what has been fetched.
        await report()
        await self._app(scope, receive_and_report, send)


def _may_be_large(headers: Headers) -> bool:
    length = headers.get("content-length", "")
    if length.isdecimal():
        return int(length) > _LEAST_BYTES
    return "transfer-encoding" in headers
