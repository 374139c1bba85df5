"""The HTTP door's part of a drain: which requests the Router waits for, and which are refused."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.refusals import refusal
from deployments.contract.errors import ServiceUnavailableError
from deployments.http_errors import retry_headers
from deployments.router.router import Router

# Another instance can take the next request, and a client that keeps its connection would ask here.
_CLOSE = {"Connection": "close"}


class CountedInFlight:
    """ASGI middleware that lets the router count the requests in work, to their last byte.

    Once the router drains, a request that asks for work is refused before its body is read.
    Questions (GET) are answered to the end, and nothing waits for them.
    """

    def __init__(self, app: ASGIApp, router: Router) -> None:
        self._app, self._router = app, router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # `lifespan` lasts as long as the application.
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        in_flight = self._router.in_flight
        try:
            in_flight.check_accepting()
        except ServiceUnavailableError as error:
            headers = retry_headers(error) | _CLOSE
            refused = refusal(
                *(scope, error.status, str(error), error.type),
                headers=headers,
                reason="draining",
            )
            await refused(scope, receive, send)
            return
        whole = False

        async def receive_until_ended() -> Message:
            nonlocal whole
            if whole:
                # What comes now is only that the caller leaves. The router ends the work itself.
                return await receive()
            async with in_flight.interruptible():
                message = await receive()
            whole = not message.get("more_body", False)
            return message

        with in_flight.request():
            await self._app(scope, receive_until_ended, send)
