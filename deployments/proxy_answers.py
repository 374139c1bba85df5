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
-   The headers that change its limits for one request have the names below; they are taken off.
-   Its limit of time is `request_timeout_s` of the innermost application; the middlewares between
    name the application within as `_app` or `app`.

What applications send passes unchanged and piece by piece.
"""

import logging
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.contract.errors import (
    OverloadedError,
    RequestTimeoutError,
    ServiceUnavailableError,
    WhisperServeError,
)
from deployments.http_errors import (
    READABLE_HEADERS,
    REQUEST_ID_HEADER,
    error_response,
    retry_headers,
    route_of,
)
from deployments.logs import error_location, log_through_serve
from deployments.proxy_uploads import PacedBodies
from deployments.router.request_log import log_refusal, valid_request_id
from deployments.security_headers import SecurityHeaders

logger = logging.getLogger(__name__)

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = f"{__name__}:middlewares"

# With these, any caller could lift the proxy's limit of time for a request, or let its work go on
# after the caller has left.
_OPERATORS_HEADERS = ("x-request-timeout-seconds", "x-request-disconnect-disabled")
_TOO_MANY_REQUESTS = 429


def middlewares() -> list[Middleware]:
    """What Serve wraps its proxy in. Called once, in the proxy's process."""
    log_through_serve()
    # The first is the innermost.
    return [Middleware(PacedBodies), Middleware(ContractAnswers)]


class ContractAnswers:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._with_headers = SecurityHeaders(app)
        self._origins = _AllowedOrigins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if route_of(scope).startswith("/-/"):
            # Here the proxy tells load balancers its own health.
            await self._with_headers(scope, receive, send)
            return
        # One id for answer, body and log, also where the caller's own fits into no log line.
        headers = MutableHeaders(scope=scope)
        request_id = valid_request_id(headers.get(REQUEST_ID_HEADER))
        headers[REQUEST_ID_HEADER] = request_id
        for name in _OPERATORS_HEADERS:
            del headers[name]
        exchange = _Exchange(receive, send, self._origins)
        error = await self._error_in_place_of(exchange, scope)
        if error is not None:
            log_refusal(request_id, error.status, error.kind, exchange.seconds())
            answer_headers = error.headers | {REQUEST_ID_HEADER: request_id}
            answer_headers |= self._origins.headers_for(headers.get("origin"))
            answer = error_response(
                scope["path"], error.status, error.text, error.kind, answer_headers
            )
            await SecurityHeaders(answer)(scope, receive, send)

    async def _error_in_place_of(
        self, exchange: "_Exchange", scope: Scope
    ) -> "_Error | None":
        """Let the proxy answer; gives the error to answer in its place, if there is one."""
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.started:
                raise
            logger.error(
                "event=proxy_failed error=%s at=%s",
                *(type(error).__name__, error_location(error)),
            )
            return _error_of(WhisperServeError("Internal error; the log names it"))
        if exchange.held_back is not None:
            return exchange.translated()
        if exchange.started or exchange.caller_left:
            return None
        limit_s = _time_limit_s(self._app)
        if limit_s is not None and exchange.seconds() >= limit_s:
            return _error_of(_timed_out())
        return _error_of(
            ServiceUnavailableError(
                "The service stopped while it worked on this request; send it again"
            )
        )


@dataclass(frozen=True)
class _Error:
    """An error to be answered; headers: `Retry-After`, if it passes."""

    status: int
    text: str
    kind: str
    headers: dict[str, str]


def _error_of(error: WhisperServeError) -> _Error:
    return _Error(error.status, str(error), error.type, retry_headers(error))


def _timed_out() -> RequestTimeoutError:
    return RequestTimeoutError(
        "The request took longer than http_options.request_timeout_s"
    )


def _time_limit_s(app: ASGIApp | None) -> float | None:
    """The proxy's own limit of time for a request; None where it has none."""
    while app is not None and not hasattr(app, "request_timeout_s"):
        app = getattr(app, "_app", None) or getattr(app, "app", None)
    limit_s: float | None = getattr(app, "request_timeout_s", None)
    return limit_s


class _AllowedOrigins:
    """The origins of web pages that may read what the proxy answers.

    The proxy does not know the configuration of its applications. An origin is allowed here once
    an application has allowed it in an answer, as in that to the browser's preflight request.
    """

    _MOST = 1000

    def __init__(self) -> None:
        self._allowed: set[str] = set()

    def add(self, origin: str) -> None:
        if len(self._allowed) < self._MOST:
            self._allowed.add(origin)

    def headers_for(self, origin: str | None) -> dict[str, str]:
        """What lets the page of this origin read an answer, if it may."""
        if origin is None or not self._allowed & {origin, "*"}:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": ", ".join(READABLE_HEADERS),
            "Vary": "Origin",
        }


class _Exchange:
    """One request and its answer, as they pass the middleware.

    origins: learns which origin the answer allows
    started: whether an answer has begun
    held_back: the start of an answer of the proxy's own, which is not sent
    caller_left: whether the caller has closed the connection
    """

    def __init__(self, receive: Receive, send: Send, origins: _AllowedOrigins) -> None:
        self._receive, self._send, self._origins = receive, send, origins
        self._text = b""
        self.started = False
        self.held_back: Message | None = None
        self.caller_left = False
        self._began_at = time.monotonic()

    def seconds(self) -> float:
        """How long the request has taken so far."""
        return time.monotonic() - self._began_at

    async def receive(self) -> Message:
        message = await self._receive()
        self.caller_left |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = _headers_of(message)
            if origin := headers.get("access-control-allow-origin"):
                self._origins.add(origin)
            if _is_the_proxys_own(message["status"], headers):
                self.held_back = message
        if self.held_back is None:
            await self._send(message)
        else:
            self._text += message.get("body", b"")

    def translated(self) -> _Error:
        """The contract's error in place of the answer that was held back."""
        assert self.held_back is not None
        status = self.held_back["status"]
        if status == 404:
            text = "Not found: no application is at this path"
            return _Error(404, text, "not_found", {})
        if status == 408:
            return _error_of(_timed_out())
        error: WhisperServeError = ServiceUnavailableError(
            "The service does not run at the moment; try again"
        )
        if status == _TOO_MANY_REQUESTS or b"backpressure" in self._text:
            error = OverloadedError("Too many requests wait for the service")
        asked = Headers(raw=self.held_back["headers"]).get("retry-after")
        headers = {"Retry-After": asked} if asked else retry_headers(error)
        return _Error(status, str(error), error.type, headers)


def _headers_of(start: Message) -> Headers:
    return Headers(raw=[tuple(header) for header in start.get("headers", [])])


def _is_the_proxys_own(status: int, headers: Headers) -> bool:
    return (
        status in (404, 408, _TOO_MANY_REQUESTS, 503)
        and headers.get("content-type") == "text/plain; charset=utf-8"
        and "content-length" not in headers
    )
