"""Serve's own answers in the contract's form: the middleware around what stands for the proxy.

What Serve's proxy sends is made by its own functions. tests/end_to_end/ has the proxy itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.serve._private import constants
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    _apply_middlewares,
    convert_object_to_asgi_messages,
    get_http_response_status,
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    send_http_response_on_exception,
)
from ray.serve._private.proxy import HTTPProxy
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import api
from deployments.proxy_answers import CALLBACK, VARIABLE, ContractAnswers, middlewares
from deployments.proxy_uploads import EXTENSION
from tests.support.asgi import LEAVES, Connection, http_scope
from tests.support.handles import Handle
from tests.support.routers import router
from tests.support.security_headers import missing

Proxy = Callable[[Scope, Receive, Send], Awaitable[None]]


def wrapped(proxy: Proxy) -> ASGIApp:
    """The proxy as Serve wraps it: its own middleware within, ours without, the last outermost."""
    app: ASGIApp = RequestIdMiddleware(proxy)
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app


def client(proxy: Proxy) -> TestClient:
    return TestClient(wrapped(proxy), raise_server_exceptions=False)


def failing(error: Exception) -> Proxy:
    """Serve's proxy where the call of the replica ends with this error."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        status = get_http_response_status(error, 1.5, "an-id")
        for message in send_http_response_on_exception(status, response_started=False):
            await send(message)

    return proxy


def sending(*messages: Message) -> Proxy:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return proxy


class SilentProxy(HTTPProxy):
    """Serve's proxy where the call of the replica ends after a message that is no answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": f"{EXTENSION}.taken", "bytes": 0})


def silent(request_timeout_s: float | None) -> ASGIApp:
    """As Serve makes it and puts it into its middlewares."""
    proxy_router: Any = None  # It finds no replica here.
    return _apply_middlewares(
        SilentProxy(
            "node", "127.0.0.1", False, proxy_router, "proxy", request_timeout_s
        ),
        middlewares(),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("limit_s", "status", "retry"),
    [(1e-9, 504, "false"), (1000.0, 503, "true"), (None, 503, "true")],
)
def test_an_upload_that_meets_serves_limit_of_time_is_not_to_be_sent_again(
    limit_s: float | None, status: int, retry: str
) -> None:
    caller = TestClient(silent(limit_s))
    response = caller.post("/v1/audio/transcriptions", content=b"x")
    assert response.status_code == status
    assert response.headers["x-should-retry"] == retry
    assert ("retry-after" in response.headers) is (retry == "true")


ROUTER = DeploymentID(name="Router", app_name="whisper")


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (RuntimeError("the replica died"), 503, "service_unavailable", "5"),
        (TimeoutError(), 504, "request_timeout", None),
        (DeploymentUnavailableError(ROUTER), 503, "service_unavailable", "5"),
        (
            BackPressureError(num_queued_requests=9, max_queued_requests=9),
            503,
            "overloaded",
            "10",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failure_that_the_proxy_answers_is_one_of_the_contract(
    error: Exception,
    status: int,
    kind: str,
    retry_after: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "ray.serve"):
        response = client(failing(error)).post(
            "/transcribe", json={}, headers={"x-request-id": "mine"}
        )
    assert response.status_code == status
    assert set(response.json()) == {"error", "type"}
    assert response.json()["type"] == kind
    assert response.headers.get("retry-after") == retry_after
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert missing(response.headers) == []
    [line] = [r.getMessage() for r in caplog.records if "request_id=" in r.getMessage()]
    assert line.startswith(f"request_id=mine model=- status={status} reason={kind} ")


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/speech/v1/models"])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (DeploymentUnavailableError(ROUTER), 503, "service_unavailable", "5"),
        (TimeoutError(), 504, "request_timeout", None),
    ],
    ids=["unavailable", "timeout"],
)
def test_openais_clients_get_an_error_in_openais_form(
    path: str, error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    response = client(failing(error)).post(path, headers={"x-request-id": "mine"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == retry_after
    assert response.headers["x-should-retry"] == str(retry_after is not None).lower()
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_proxy_and_application_agree_on_what_openais_paths_are() -> None:
    unavailable = client(failing(DeploymentUnavailableError(ROUTER)))
    for prefix, route, is_openais in (
        ("", "/transcribe", False),
        ("/audio", "/transcribe", False),
        ("/v1", "/transcribe", False),
        ("/speech", "/v1/nothing", True),
        ("/speech", "/models/nothing", True),
        ("", "/audio/speech", True),
    ):
        app = api.build(router(Handle()))
        served = TestClient(app, root_path=prefix, raise_server_exceptions=False)
        for caller in (unavailable, served):
            error = caller.delete(prefix + route).json()["error"]
            assert isinstance(error, dict) is is_openais


def test_a_path_without_an_application_is_not_found() -> None:
    text = "Path '/secret' not found. Ping http://.../-/routes for available routes."
    response = client(sending(*convert_object_to_asgi_messages(text, 404))).get(
        "/secret"
    )
    assert response.status_code == 404
    assert response.json() == {
        "error": "Not found: no application is at this path",
        "type": "not_found",
    }
    assert len(response.headers["x-request-id"]) == 32


def test_the_time_that_serve_asks_a_caller_to_wait_is_kept() -> None:
    messages = convert_object_to_asgi_messages(
        "Request dropped due to backpressure", 429, [(b"retry-after", b"17")]
    )
    response = client(sending(*messages)).get("/")
    assert (response.status_code, response.json()["type"]) == (429, "overloaded")
    assert response.headers["retry-after"] == "17"


def test_a_proxy_that_breaks_shows_nothing_of_itself() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret")

    response = client(broken).get("/")
    assert response.status_code == 500
    assert missing(response.headers) == []
    assert response.json() == {
        "error": "Internal error; the log names it",
        "type": "internal_error",
    }


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
def test_what_load_balancers_ask_serve_is_left_alone(path: str) -> None:
    messages = convert_object_to_asgi_messages("This node is being drained.", 503)
    response = client(sending(*messages)).get(path)
    assert (response.status_code, response.text) == (503, "This node is being drained.")
    assert missing(response.headers) == []


def test_the_errors_of_other_applications_are_left_alone() -> None:
    response = client(PlainTextResponse("their own", 404)).get("/theirs")
    assert (response.status_code, response.text) == (404, "their own")
    assert "content-security-policy" not in response.headers


def test_the_id_in_the_request_is_the_one_in_the_answer() -> None:
    seen: list[str] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(
            value.decode()
            for name, value in scope["headers"]
            if name == b"x-request-id"
        )
        await PlainTextResponse("ok")(scope, receive, send)

    for given, kept in [("mine", True), ("no id of a line", False), ("", False)]:
        seen.clear()
        response = client(proxy).get("/", headers={"x-request-id": given})
        assert response.headers.get_list("x-request-id") == seen
        assert (seen == [given]) is kept
    seen.clear()
    assert client(proxy).get("/").headers.get_list("x-request-id") == seen


def test_a_caller_cannot_lift_the_limits_of_the_proxy() -> None:
    seen: list[str] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        seen.extend(name.decode() for name in headers)
        assert parse_request_timeout_header(headers, 9.0) == 9.0
        assert not parse_disconnect_disabled_header(headers)
        await PlainTextResponse("ok")(scope, receive, send)

    headers = [
        (constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER, "0"),
        (constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.title(), "-1"),
        (constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER, "?1"),
        ("x-request-ids", "kept"),
    ]
    assert client(proxy).get("/", headers=headers).text == "ok"
    assert "x-request-ids" in seen


def called(proxy: Proxy, connection: Connection) -> list[Message]:
    """What is sent to the caller."""
    scope = http_scope()
    asyncio.run(wrapped(proxy)(scope, connection.receive, connection.send))  # type: ignore[arg-type]
    return connection.sent


def test_each_piece_of_a_stream_is_passed_on_before_the_next_is_made() -> None:
    passed: list[int] = []
    connection = Connection()

    async def pieces(send: Send) -> None:
        for number in range(3):
            await send(
                {"type": "http.response.body", "body": b"x", "more_body": number < 2}
            )
            passed.append(len(connection.sent))

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
        await pieces(send)

    called(proxy, connection)
    assert passed == [2, 3, 4]


def test_an_answer_that_breaks_off_gets_nothing_after_it() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    body = {"type": "http.response.body", "body": b"half", "more_body": True}
    assert len(called(sending(start, body), Connection(LEAVES))) == 2


def test_a_caller_who_has_left_is_sent_nothing() -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    assert called(proxy, Connection(LEAVES)) == []


def test_other_connections_than_http_are_left_alone() -> None:
    seen: list[Scope] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": "websocket", "path": "/", "headers": []}
    connection = Connection()
    asyncio.run(ContractAnswers(proxy)(scope, connection.receive, connection.send))
    assert seen == [{"type": "websocket", "path": "/", "headers": []}]


def test_serve_finds_the_function_by_the_name_that_it_is_given() -> None:
    from ray.serve._private.utils import call_function_from_import_path

    assert hasattr(constants, VARIABLE)
    assert call_function_from_import_path(CALLBACK)


def test_a_page_that_the_application_has_allowed_reads_the_proxys_errors_too() -> None:
    dead = False

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if dead:
            await failing(DeploymentUnavailableError(ROUTER))(scope, receive, send)
            return
        app = api.build(router(Handle(), allowed_origins=["https://page.example"]))
        await app(scope, receive, send)

    caller = client(proxy)
    page = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    stranger = page | {"Origin": "https://other.example"}
    for headers in (page, stranger):
        caller.options("/transcribe", headers=headers)
    dead = True
    error = caller.post("/transcribe", headers=page)
    assert error.status_code == 503
    assert error.headers["access-control-allow-origin"] == "https://page.example"
    assert "retry-after" in error.headers["access-control-expose-headers"]
    assert error.headers["vary"] == "Origin"
    for headers in (stranger, {}):
        error = caller.post("/transcribe", headers=headers)
        assert "access-control-allow-origin" not in error.headers


def test_an_origin_that_no_answer_has_allowed_is_not_learned_from_a_request() -> None:
    caller = client(failing(DeploymentUnavailableError(ROUTER)))
    for _ in range(2):
        error = caller.get("/models", headers={"Origin": "https://page.example"})
        assert "access-control-allow-origin" not in error.headers
