"""Keys, refusals and CORS in front of every route. No Ray, no port."""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from fastapi import WebSocket
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from deployments import api
from deployments.api.access import Guard, GuardedApp
from deployments.keys import Keys
from tests.support.asgi import Asked, ask
from tests.support.handles import Handle, events, transcript
from tests.support.routers import RECORDING, router

KEYS = Keys.from_environment(
    {
        "API_KEYS": ",".join(
            f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
            for name, key in [("alice", "a-key"), ("bob", "b-key")]
        )
    }
)
BEARER = ("authorization", "Bearer a-key")


def app(keys: Keys | None = KEYS, **args: Any) -> GuardedApp:
    handle = Handle(stream=[events(transcript())])
    return api.build(router(handle, running=0, **args), keys)


def status(*headers: tuple[str, str], keys: Keys | None = KEYS) -> int:
    return ask(app(keys), "GET", "/models", headers).status


def test_the_description_says_where_a_key_is_needed() -> None:
    document = app().openapi()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]
    for path in ("/health", "/ready", "/ping"):
        assert document["paths"][path]["get"]["security"] == []
    assert "security" not in app(None).openapi()


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer a-key")],
        [("authorization", "bearer a-key")],
        [("authorization", "BEARER   a-key ")],
        [("X-API-Key", "b-key")],
        [("x-api-key", " b-key ")],
        [("authorization", "Bearer a-key"), ("x-api-key", "a-key")],
        # Another scheme is of whatever stands in front of the service.
        [("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "a-key")],
        [("authorization", "Bearer a-key"), ("authorization", "Bearer a-key")],
    ],
)
def test_a_key_opens_the_service(headers: list[tuple[str, str]]) -> None:
    assert status(*headers) == 200


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([], "An API key is needed"),
        ([("authorization", "")], "An API key is needed"),
        ([("authorization", "Bearer")], "An API key is needed"),
        ([("authorization", "Bearer ")], "An API key is needed"),
        ([("authorization", "a-key")], "An API key is needed"),
        ([("authorization", "Token a-key")], "An API key is needed"),
        ([("authorization", "Basic a-key")], "An API key is needed"),
        ([("x-api-key", "")], "An API key is needed"),
        ([("api-key", "a-key")], "An API key is needed"),
        ([("cookie", "x-api-key=a-key")], "An API key is needed"),
        ([("authorization", "Bearer wrong")], "Unknown API key"),
        ([("authorization", "Bearer A-KEY")], "Unknown API key"),
        ([("authorization", "Bearer a-key b-key")], "Unknown API key"),
        ([("authorization", "Bearer schlüssel")], "Unknown API key"),
        ([("x-api-key", "a-key, b-key")], "Unknown API key"),
        ([BEARER, ("x-api-key", "b-key")], "The request holds two different"),
        ([BEARER, ("x-api-key", "wrong")], "The request holds two different"),
        (
            [BEARER, ("authorization", "Bearer b-key")],
            "The request holds two different",
        ),
    ],
)
def test_a_request_without_a_valid_key_is_refused(
    headers: list[tuple[str, str]], error: str
) -> None:
    asked = ask(app(), "POST", "/transcribe", headers, body=b"{}")
    assert asked.status == 401
    assert asked.headers["www-authenticate"] == "Bearer"
    assert asked.headers["content-type"] == "application/json"
    assert asked.json()["type"] == "unauthorized"
    assert asked.json()["error"].startswith(error)
    assert b"wrong" not in asked.body
    assert not asked.body_read


def test_a_key_in_the_url_is_none() -> None:
    client = TestClient(app())
    for name in ("key", "api_key", "x-api-key", "access_token"):
        assert client.get("/models", params={name: "a-key"}).status_code == 401


@pytest.mark.parametrize(
    ("path", "openai_form"),
    [
        ("/v1/audio/transcriptions", True),
        ("/v1/models", True),
        ("/v1", True),
        ("/v1/nowhere", True),
        ("/audio/translations", True),
        ("/transcribe", False),
        ("/models", True),
        ("/v10", False),
        ("/nowhere", False),
        ("/docs", False),
        ("/openapi.json", False),
        ("/", False),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/to/text"])
def test_a_refusal_has_the_form_of_the_api_that_was_called(
    prefix: str, path: str, openai_form: bool
) -> None:
    asked = ask(app(), "POST", prefix + path, root_path=prefix)
    assert asked.status == 401
    if openai_form:
        error = asked.json()["error"]
        message = error.pop("message")
        assert error == {
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    else:
        message = asked.json()["error"]
    assert message == (
        "An API key is needed: send it in the header Authorization: Bearer KEY"
    )


def test_openais_sdk_raises_its_own_error() -> None:
    client = openai.OpenAI(
        api_key="wrong",
        base_url="http://testserver/v1",
        http_client=TestClient(app()),
        max_retries=0,
    )
    with pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_need_no_key(method: str) -> None:
    assert ask(app(), method, "/health").status == 200
    assert ask(app(), method, "/to/health", root_path="/to").status == 200


PATHS = [
    "//health",
    "/health/",
    "/health//",
    "/HEALTH",
    "/v1/../health",
    "/health/../models",
    "/health;x",
    "/health%00",
    "/%68ealth",
    "/health\n",
    "/healthz",
    "/health/models",
    "health",
    "",
    "/",
    "http://localhost/health",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_only_looks_like_a_probes_needs_a_key(path: str) -> None:
    assert ask(app(), "GET", path).status == 401
    assert ask(app(), "GET", f"/to{path}", root_path="/to").status == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "get", "X"])
def test_a_probes_path_is_open_for_reading_alone(method: str) -> None:
    assert ask(app(), method, "/health").status == 401


PIECES = ["/", "//", "health", "ready", "ping", "to", "v1", "..", ".", "%2f", ";", " "]


@given(
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.sampled_from(["", "/to", "/to/v1", "/health", "/"]),
    st.sampled_from([None, "health", "localhost/health", "to"]),
)
def test_no_request_without_a_key_reaches_another_route(
    method: str, path: str, root_path: str, host: str | None
) -> None:
    """Whatever Starlette makes of the path: its routes are asked and not told anew."""

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("open" if request.url.path else "")

    async def secret(request: Request) -> PlainTextResponse:
        raise AssertionError(f"{request.scope['path']} was reached")

    methods = ["GET", "HEAD", "POST", "OPTIONS"]
    routes = [
        *(Route(p, answer, methods=["GET"]) for p in ("/health", "/ready", "/ping")),
        Route("/{path:path}", secret, methods=methods),
    ]
    headers = [("host", host)] if host is not None else []
    asked = ask(
        Guard(Starlette(routes=routes), KEYS, ()),
        method,
        path,
        headers,
        root_path=root_path,
    )
    assert asked.status in (200, 401)


def test_the_keys_name_is_in_the_log_and_the_key_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = TestClient(app())
    with caplog.at_level(logging.INFO, "deployments"):
        done = client.post(
            "/transcribe", json=RECORDING, headers={"authorization": "Bearer a-key"}
        )
        client.post("/transcribe", json={}, headers={"x-api-key": "b-key"})
        client.post("/transcribe", json={}, headers={"x-api-key": "mallory"})
        client.get("/nowhere", headers={"x-api-key": "b-key"})
    assert done.status_code == 200
    lines = [r.getMessage() for r in caplog.records if "status=" in r.getMessage()]
    assert [line.rpartition(" ")[2] for line in lines] == [
        "key=alice",
        "key=bob",
        "key=-",
        "key=bob",
    ]
    assert "status=401 reason=unauthorized" in lines[2]
    assert not any("-key" in line or "mallory" in line for line in lines)


def test_without_keys_a_callers_key_is_ignored() -> None:
    open_to_all = Keys(stated=True)
    assert status(BEARER, ("x-api-key", "other"), keys=open_to_all) == 200
    assert status(BEARER, keys=Keys()) == 200


@pytest.mark.parametrize(
    ("server", "local"),
    [
        (("127.0.0.1", 8000), True),
        (("::1", 8000), True),
        (("::ffff:127.0.0.1", 8000), True),
        (("/run/serve.sock", None), True),
        (None, False),
        (("192.0.2.2", 8000), False),
        (("fd00::2", 8000), False),
        (("fe80::1%eth0", 8000), False),
        (("0.0.0.0", 8000), False),
        (("elsewhere", 80), False),
    ],
)
def test_other_machines_are_answered_only_after_a_decision_about_keys(
    server: tuple[str, int | None] | None, local: bool
) -> None:
    for keys, passes in [(Keys(), local), (Keys(stated=True), True)]:
        asked = ask(app(keys), "GET", "/openapi.json", server=server)
        assert asked.status == (200 if passes else 403)
        if not passes:
            assert asked.json()["type"] == "keys_not_set"
            assert "set API_KEYS or API_KEYS_FILE" in asked.json()["error"]
    assert ask(app(Keys()), "GET", "/health", server=server).status == 200


CROSS_SITE = ("sec-fetch-site", "cross-site")


@pytest.mark.parametrize("keys", [None, KEYS])
@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
def test_another_sites_page_may_not_post(keys: Keys | None, path: str) -> None:
    headers = [BEARER, CROSS_SITE, ("origin", "https://evil.example")]
    asked = ask(app(keys), "POST", path, headers, body=b"{}")
    assert asked.status == 403
    assert not asked.body_read
    error = asked.json()["error"]
    text = error["message"] if path.startswith("/v1") else error
    kind = error["code"] if path.startswith("/v1") else asked.json()["type"]
    assert kind == "cross_site"
    assert text.endswith("such as https://example.com, to allowed_origins")
    assert "access-control-allow-origin" not in asked.headers


def test_reading_is_not_refused_because_no_page_sees_the_answer() -> None:
    headers = [CROSS_SITE, ("origin", "https://evil.example")]
    assert ask(app(None), "GET", "/models", headers).status == 200


def test_a_rebound_name_may_not_post_where_no_key_protects() -> None:
    headers = [("host", "evil.example"), ("origin", "http://evil.example")]
    assert ask(app(None), "POST", "/transcribe", headers).status == 403
    assert ask(app(KEYS), "POST", "/transcribe", [*headers, BEARER]).status == 422


PAGE = "https://page.example"
FROM_PAGE = [("origin", PAGE), CROSS_SITE]


def with_page(keys: Keys | None = KEYS, *origins: str) -> GuardedApp:
    return app(keys, allowed_origins=list(origins or (PAGE,)))


def preflight(app: GuardedApp, *more: tuple[str, str], origin: str = PAGE) -> Asked:
    headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
        *more,
    ]
    return ask(app, "OPTIONS", "/v1/audio/transcriptions", headers)


def test_an_allowed_pages_browser_may_ask_without_a_key_what_it_may_send() -> None:
    local = ("access-control-request-private-network", "true")
    asked = preflight(with_page(), local)
    assert asked.status == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in asked.headers


def test_no_other_pages_browser_is_told_so() -> None:
    for asked in (
        preflight(with_page(), origin="https://evil.example"),
        preflight(app()),
        preflight(app(None)),
    ):
        assert asked.status >= 400
        assert "access-control-allow-origin" not in asked.headers


def test_any_page_may_be_allowed() -> None:
    asked = preflight(with_page(KEYS, "*"), origin="https://any.example")
    assert asked.headers["access-control-allow-origin"] == "*"
    headers = [("origin", "https://any.example"), CROSS_SITE, BEARER]
    assert ask(with_page(KEYS, "*"), "GET", "/models", headers).status == 200


def fails() -> None:
    raise ValueError("secret")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/models", [BEARER], 200),
        ("GET", "/models", [], 401),
        ("GET", "/nowhere", [BEARER], 404),
        ("DELETE", "/models", [BEARER], 405),
        ("POST", "/transcribe", [BEARER], 422),
        ("GET", "/fails", [BEARER], 500),
    ],
)
def test_an_allowed_page_can_read_every_answer(
    method: str, path: str, headers: Sequence[tuple[str, str]], status: int
) -> None:
    whole = with_page()
    whole.get("/fails")(fails)
    client = TestClient(whole, raise_server_exceptions=False)
    asked = client.request(method, path, headers=[*FROM_PAGE, *headers])
    assert asked.status_code == status
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["vary"] == "Origin"
    assert {
        name.strip()
        for name in asked.headers["access-control-expose-headers"].split(",")
    } == {"x-request-id", "retry-after", "x-should-retry", "x-whisper-warnings"}


def test_a_websocket_needs_a_key_too() -> None:
    whole = app()

    @whole.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    client = TestClient(whole)
    with client.websocket_connect("/socket", headers={"x-api-key": "a-key"}):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
        pass


def test_a_stream_passes_piece_by_piece() -> None:
    passed: list[int] = []
    sent: list[Message] = []

    async def pieces(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            more = number < 2
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
            passed.append(len(sent))

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    scope: Any = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-api-key", b"a-key")],
    }
    asyncio.run(Guard(pieces, KEYS, ())(scope, receive, send))
    assert passed == [2, 3, 4]
