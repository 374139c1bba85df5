"""One request to an ASGI application, with the scope that a test wants, and no client between."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

LOOPBACK = ("127.0.0.1", 8000)


@dataclass(frozen=True)
class Asked:
    """What was answered. body_read: whether the application asked for the request's body"""

    status: int
    headers: Headers
    body: bytes
    body_read: bool

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    headers: Sequence[tuple[str, str]] = (),
    *,
    root_path: str = "",
    server: tuple[str, int | None] | None = LOOPBACK,
    body: bytes = b"",
) -> Asked:
    sent: list[Message] = []
    reads = 0

    async def receive() -> Message:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
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
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    start, *rest = sent
    content = b"".join(message.get("body", b"") for message in rest)
    return Asked(start["status"], Headers(raw=start["headers"]), content, reads > 0)
