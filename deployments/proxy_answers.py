"""What Serve's HTTP proxy answers by itself, in the contract's form.

The proxy answers without the application where there is no route, where no Router runs, where its
own limit of time passes, and where the Router dies with a request. Its own answers are plain text.
Serve calls the function that its variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names and wraps
the proxy in the middlewares that the function gives. The variable belongs into the environment of
Ray's processes: `ray_node.start_ray` and the image set it.

This module relies on the proxy of ray 2.60, and a test names what it relies on:

-   An answer of the proxy's own is `text/plain; charset=utf-8` without a length. Web frameworks
    state the length, so the errors of other applications on the same proxy stay as they are.
-   The proxy sends nothing at all where the replica that worked on the request has died.
-   An x-request-id in the request is kept, and repeated in the answer.

What applications send passes unchanged and piece by piece.
"""

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.contract.errors import (
    OverloadedError,
    RequestTimeoutError,
    ServiceUnavailableError,
    WhisperServeError,
)
from deployments.http_errors import (
    contract_response,
    error_response,
    in_openai_form,
)
from deployments.logs import error_location, log_through_serve
from deployments.proxy_uploads import PacedBodies
from deployments.router.request_log import log_refusal, valid_request_id

logger = logging.getLogger(__name__)

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = f"{__name__}:middlewares"

_ID_HEADER = "x-request-id"
_TOO_MANY_REQUESTS = 429
# Where clients of OpenAI's API ask, below whatever prefix the application has.
_OPENAI = re.compile(r"/(?:v1|audio|models)(?:/|$)")


def middlewares() -> list[Middleware]:
    """What Serve wraps its proxy in. Called once, in the proxy's process."""
    log_through_serve()
    # The first is the innermost.
    return [Middleware(PacedBodies), Middleware(ContractAnswers)]


class ContractAnswers:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Below /-/ the proxy tells load balancers its own health.
        route = scope.get("path", "")[len(scope.get("root_path", "")) :]
        if scope["type"] != "http" or route.startswith("/-/"):
            await self._app(scope, receive, send)
            return
        # One id for answer, body and log, also where the caller's own fits into no log line.
        headers = MutableHeaders(scope=scope)
        headers[_ID_HEADER] = valid_request_id(headers.get(_ID_HEADER))
        exchange, started = _Exchange(receive, send), time.monotonic()
        answer = await self._answer_in_place_of(exchange, scope)
        if answer is not None:
            if _OPENAI.search(route):
                answer = in_openai_form(answer)
            request_id = headers[_ID_HEADER]
            answer.headers[_ID_HEADER] = request_id
            seconds = time.monotonic() - started
            log_refusal(request_id, answer.status_code, exchange.reason, seconds)
            await answer(scope, receive, send)

    async def _answer_in_place_of(
        self, exchange: "_Exchange", scope: Scope
    ) -> Response | None:
        """Let the proxy answer; gives what to answer in its place, if anything."""
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.started:
                raise
            logger.error(
                "event=proxy_failed error=%s at=%s",
                *(type(error).__name__, error_location(error)),
            )
            return exchange.contract(
                WhisperServeError("Internal error; the log names it")
            )
        if exchange.held_back is not None:
            return exchange.translated()
        if exchange.started or exchange.caller_left:
            return None
        return exchange.contract(
            ServiceUnavailableError(
                "The service stopped while it worked on this request; send it again"
            )
        )


class _Exchange:
    """One request and its answer, as they pass the middleware.

    started: whether an answer has begun
    held_back: the start of an answer of the proxy's own, which is not sent
    caller_left: whether the caller has closed the connection
    reason: the type of the error that is answered, for the log
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._text = b""
        self.started = False
        self.held_back: Message | None = None
        self.caller_left = False
        self.reason = ""

    async def receive(self) -> Message:
        message = await self._receive()
        self.caller_left |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if _is_the_proxys_own(message):
                self.held_back = message
        if self.held_back is None:
            await self._send(message)
        else:
            self._text += message.get("body", b"")

    def translated(self) -> Response:
        """The contract's answer in place of the one that was held back."""
        assert self.held_back is not None
        status = self.held_back["status"]
        retry_after = Headers(raw=self.held_back["headers"]).get("retry-after")
        headers = {"Retry-After": retry_after} if retry_after else {}
        if status == 404:
            self.reason = "not_found"
            return error_response(
                404, "Not found: no application is at this path", self.reason
            )
        if status == 408:
            return self.contract(
                RequestTimeoutError(
                    "The request took longer than http_options.request_timeout_s,"
                    " or than its own header x-request-timeout-seconds"
                )
            )
        if status == _TOO_MANY_REQUESTS or b"backpressure" in self._text:
            overloaded = OverloadedError("Too many requests wait for the service")
            response = self.contract(overloaded, headers)
            response.status_code = status
            return response
        return self.contract(
            ServiceUnavailableError(
                "The service does not run at the moment; try again"
            ),
            headers,
        )

    def contract(
        self, error: WhisperServeError, headers: dict[str, str] | None = None
    ) -> Response:
        self.reason = error.type
        return contract_response(error, headers)


def _is_the_proxys_own(start: Message) -> bool:
    headers = Headers(raw=[tuple(header) for header in start.get("headers", [])])
    return (
        start["status"] in (404, 408, _TOO_MANY_REQUESTS, 503)
        and headers.get("content-type") == "text/plain; charset=utf-8"
        and "content-length" not in headers
    )
