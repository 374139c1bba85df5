"""Who may use the HTTP door: API keys, and web pages of other origins.

Everything here is plain ASGI, because streams and large uploads pass through it. A request that is
refused is refused before its body is read.
"""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.origins import may_post
from deployments.api.refusals import EndAnsweredErrors, refusal
from deployments.api.request_context import RequestContext
from deployments.http_errors import READABLE_HEADERS, route_of
from deployments.keys import Keys, is_loopback
from deployments.router.request_log import caller_key
from deployments.security_headers import SecurityHeaders

# Probes have no key. What they learn is that the service runs.
_OPEN_PATHS = ("/health", "/ready", "/ping")


class GuardedApp(FastAPI):
    """A FastAPI application whose every route is guarded, and every unknown path.

    keys: that open it
    allowed_origins: of web pages that may use it from a browser, see `AppArgs`
    """

    def __init__(
        self, *, keys: Keys, allowed_origins: Collection[str], **options: Any
    ) -> None:
        super().__init__(**options)
        self._keys = keys
        self._allowed_origins = tuple(allowed_origins)

    def build_middleware_stack(self) -> ASGIApp:
        """Put the guards around all else.

        `add_middleware` would put them within Starlette's answer to an unforeseen error, which the
        page of an allowed origin could then not read.
        """
        app: ASGIApp = EndAnsweredErrors(super().build_middleware_stack())
        app = Guard(app, self._keys, self._allowed_origins)
        if self._allowed_origins:
            # Around the keys, so that refusals can be read by the pages that are allowed, and so
            # that a preflight request, which never holds a key, is answered.
            app = CORSMiddleware(
                app,
                allow_origins=self._allowed_origins,
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=("*",),
                allow_private_network=True,
                expose_headers=READABLE_HEADERS,
            )
        return RequestContext(SecurityHeaders(app))

    def openapi(self) -> dict[str, Any]:
        """The description, which says where a key is needed."""
        document = super().openapi()
        if self._keys.required:
            schemes = document["components"].setdefault("securitySchemes", {})
            schemes["bearer"] = {"type": "http", "scheme": "bearer"}
            document["security"] = [{"bearer": []}]
            for path in _OPEN_PATHS:
                document["paths"][path]["get"]["security"] = []
        return document


class Guard:
    """ASGI middleware: lets in who has a key, where one is needed, and no page of another site."""

    def __init__(self, app: ASGIApp, keys: Keys, allowed_origins: Collection[str]):
        self._app = app
        self._keys = keys
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller_key.set("-")
        refused = await self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        else:
            await refused(scope, receive, send)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        """What to answer in place of the application, if anything."""
        if _is_open(scope):
            return None
        headers = Headers(scope=scope)
        if self._keys.required:
            given = _keys_in(headers)
            if len(given) != 1:
                return _unauthorized(scope, _TWO_KEYS if given else _NO_KEY)
            owner = await self._keys.owner(*given)
            if owner is None:
                return _unauthorized(scope, _WRONG_KEY)
            caller_key.set(owner)
        elif not self._keys.stated and not _is_local(scope):
            return refusal(scope, 403, _NOT_STATED, "keys_not_set")
        posts = scope.get("method") == "POST"
        any_host = self._keys.required
        if posts and not may_post(headers, self._allowed_origins, any_host=any_host):
            return refusal(scope, 403, _CROSS_SITE, "cross_site")
        return None


_NO_KEY = "An API key is needed: send it in the header Authorization: Bearer KEY"
_TWO_KEYS = "The request holds two different API keys: send one"
_WRONG_KEY = "Unknown API key"
_NOT_STATED = (
    "This service has no API keys, so it answers on loopback alone: set API_KEYS or API_KEYS_FILE"
    " where it runs, or API_KEYS=none if callers are checked elsewhere"
)
_CROSS_SITE = (
    "A web page that this service does not know sent the request: add the page's origin, such as"
    " https://example.com, to allowed_origins"
)


def _is_open(scope: Scope) -> bool:
    """Whether the request needs no key.

    The path is read as Starlette's router reads it, and never rebuilt from the Host.
    """
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    return route_of(scope) in _OPEN_PATHS


def _keys_in(headers: Headers) -> set[bytes]:
    """The different keys that a request holds. Other schemes than Bearer are no keys."""
    given = set(headers.getlist("x-api-key"))
    for header in headers.getlist("authorization"):
        scheme, _, credentials = header.strip().partition(" ")
        if scheme.lower() == "bearer":
            given.add(credentials)
    # Starlette reads headers as Latin-1, so this gives back the bytes that were sent.
    return {key.strip().encode("latin-1") for key in given if key.strip()}


def _is_local(scope: Scope) -> bool:
    """Whether the connection came to loopback, or to a Unix socket, which has no port.

    The proxy may run on another machine than this process, or listen on several addresses, so what
    counts is the address of each connection.
    """
    address, port = scope.get("server") or ("", 0)
    return port is None or is_loopback(address)


def _unauthorized(scope: Scope, text: str) -> JSONResponse:
    return refusal(
        scope,
        401,
        text,
        "unauthorized",
        headers={"WWW-Authenticate": "Bearer"},
        code="invalid_api_key",
    )
