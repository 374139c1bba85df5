"""Headers that tell a browser to do nothing with an answer but read it.

A browser may be made to open any address of the service, also one whose answer holds what a caller
or a stranger's file has said. https://cheatsheetseries.owasp.org lists these headers for APIs.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # An answer has the type that it says, and is never guessed to be a page or a script.
    "X-Content-Type-Options": "nosniff",
    # An answer that is opened as a page loads and runs nothing, and stands in no other page.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    # Other sites cannot load an answer as an image or a script. CORS works all the same.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # Transcripts stay in no cache. The files of /docs say otherwise.
    "Cache-Control": "no-store",
}


class SecurityHeaders:
    """ASGI middleware that adds the headers to each answer. What the answer says itself is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
