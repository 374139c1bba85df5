"""What a client sends over HTTP, as the application gets it."""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEPT_BYTES = 1000


@dataclass(frozen=True)
class Request:
    """One request; of its body the first bytes, and the answer's status."""

    path: str
    headers: Headers
    body_start: bytes
    status: int


class Recorder:
    """ASGI middleware that keeps the requests since `clear`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[Request] = []

    def clear(self) -> None:
        self.requests = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""

        async def received() -> Message:
            nonlocal body
            message = await receive()
            if len(body) < _KEPT_BYTES:
                body = (body + message.get("body", b""))[:_KEPT_BYTES]
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, status = Headers(scope=scope), message["status"]
                self.requests.append(Request(scope["path"], headers, body, status))
            await send(message)

        await self._app(scope, received, sent)
