"""Headers that tell browsers what not to do with an answer: on every route and every error."""

from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message

from deployments import api
from deployments.api.access import GuardedApp
from deployments.contract.errors import OverloadedError
from deployments.keys import Keys
from deployments.security_headers import SecurityHeaders
from tests.api.test_access import KEYS
from tests.support.asgi import Connection, http_scope
from tests.support.handles import Handle, Response, events, transcript
from tests.support.routers import AUDIO, BrokenRouter, router
from tests.support.security_headers import missing

ORIGIN = "https://page.example"
PATHS = (
    "/docs",
    "/docs/init.js",
    "/docs/swagger-ui.css",
    "/docs/swagger-ui-bundle.js",
    "/health",
    "/models",
    "/openapi.json",
    "/ping",
    "/ready",
    "/transcribe",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/models",
    "/v1/models/base",
    "/nowhere",
    "/v1/nowhere",
)


def app(keys: Keys | None = None, *, fails: bool = False, **args: Any) -> GuardedApp:
    outcome = events(OverloadedError("full")) if fails else events(transcript())
    handle = Handle(stream=[outcome], slots=[Response(None)])
    args.setdefault("allowed_origins", [ORIGIN])
    return api.build(router(handle, running=0, **args), keys)


def client(*args: Any, **options: Any) -> TestClient:
    return TestClient(app(*args, **options), raise_server_exceptions=False)


def test_the_paths_of_these_tests_are_those_of_the_application() -> None:
    described = {path.replace("{name}", "base") for path in app().openapi()["paths"]}
    hidden = {"/openapi.json", "/nowhere", "/v1/nowhere"}
    assert {x for x in PATHS if not x.startswith("/docs")} - hidden == described


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("keys", [None, KEYS], ids=["open", "keys"])
def test_every_route_has_them_for_every_method(method: str, keys: Keys | None) -> None:
    served = client(keys)
    for path in PATHS:
        response = served.request(method, path)
        assert missing(response.headers) == [], path


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_answers_and_streams_have_them_and_stay_in_no_cache(
    path: str, stream: bool, fails: bool
) -> None:
    served = client(fails=fails)
    with (AUDIO / "jfk.flac").open("rb") as file:
        response = served.post(
            path,
            files={"file": file},
            data={"stream": str(stream).lower(), "model": "base"},
        )
    if not fails:
        assert response.status_code == 200
        streamed = response.headers["content-type"].startswith("text/event-stream")
        assert streamed is stream
    assert missing(response.headers) == []
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("status", "content", "args"),
    [
        (422, b"no JSON", {}),
        (413, bytes(1 << 20), {"max_spool_bytes": 10}),
    ],
)
def test_refusals_of_a_body_have_them(
    status: int, content: bytes, args: dict[str, Any]
) -> None:
    response = client(**args).post("/transcribe", content=content)
    assert response.status_code == status
    assert missing(response.headers) == []
    assert response.headers["cache-control"] == "no-store"


def test_an_unforeseen_error_has_them() -> None:
    broken: Any = BrokenRouter()
    served = TestClient(api.build(broken), raise_server_exceptions=False)
    response = served.get("/health")
    assert response.status_code == 500
    assert missing(response.headers) == []


def test_an_allowed_page_still_reads_answers_and_errors() -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    served = client(KEYS)
    for response in (
        served.options("/transcribe", headers=headers),
        served.get("/models", headers={"Origin": ORIGIN}),
    ):
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert missing(response.headers) == []


async def test_what_an_answer_says_itself_is_kept() -> None:
    own = PlainTextResponse("x", headers={"Cache-Control": "max-age=60"})
    connection = Connection()
    await SecurityHeaders(own)(http_scope(), connection.receive, connection.send)
    headers = connection.answer.headers
    assert headers.getlist("cache-control") == ["max-age=60"]
    assert missing(headers) == []


async def test_other_connections_than_http_are_left_alone() -> None:
    seen: list[Message] = []

    async def websocket(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "websocket.close"})

    connection = Connection()
    scope = {"type": "websocket", "path": "/", "headers": []}
    await SecurityHeaders(websocket)(scope, connection.receive, connection.send)
    assert seen == [scope]
    assert connection.sent == [{"type": "websocket.close"}]
