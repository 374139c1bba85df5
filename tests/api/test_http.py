"""The manners of HTTP: methods, query, content types, and a log line for what the door refuses."""

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from starlette.testclient import TestClient

from deployments import api
from deployments.contract.errors import (
    ModelUnavailableError,
    OverloadedError,
    WhisperServeError,
)
from tests.support.handles import Handle, events, transcript
from tests.support.routers import RECORDING, BrokenRouter, router


def client() -> TestClient:
    handle = Handle(stream=[events(transcript())])
    return TestClient(
        api.build(router(handle, running=0)), raise_server_exceptions=False
    )


@pytest.fixture
def served() -> TestClient:
    return client()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/transcribe", "POST"),
        ("HEAD", "/transcribe", "POST"),
        ("PUT", "/transcribe", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(
    served: TestClient, method: str, path: str, allow: str
) -> None:
    response = served.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    if method != "HEAD":
        assert response.json() == {
            "error": f"Method not allowed: this route takes {allow}",
            "type": "method_not_allowed",
        }


@pytest.mark.parametrize("path", ["/health", "/models", "/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(
    served: TestClient, path: str
) -> None:
    head, get = served.head(path), served.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(get.content))


def test_an_unknown_path_tells_where_the_routes_are_listed(served: TestClient) -> None:
    assert served.get("/nowhere").json() == {
        "error": "Not found: GET /docs lists the routes",
        "type": "not_found",
    }


def test_below_a_prefix_everything_is_found_below_it() -> None:
    app = api.build(router(Handle()))
    below = TestClient(app, root_path="/speech")
    missing = below.get("/speech/nowhere").json()["error"]
    assert missing == "Not found: GET /speech/docs lists the routes"
    document = below.get("/speech/openapi.json").json()
    assert document["servers"] == [{"url": "/speech"}]
    assert below.get("/speech/health").status_code == 200


UNKNOWN = "Unknown query parameter"


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        (
            "POST",
            "/transcribe?model=turbo",
            f"{UNKNOWN}: 'model'. This API takes none: the request's fields go into the body",
        ),
        (
            "GET",
            "/health?verbose",
            f"{UNKNOWN}: 'verbose'. This API takes none: leave it out",
        ),
        (
            "GET",
            "/health?key=SECRET",
            f"{UNKNOWN}: 'key'. This API takes none: leave it out",
        ),
    ],
)
def test_an_unknown_query_parameter_is_refused_by_name(
    served: TestClient, method: str, path: str, error: str
) -> None:
    response = served.request(method, path, content=json.dumps(RECORDING))
    assert response.status_code == 422
    assert response.json() == {"error": error, "type": "invalid_request"}


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/octet-stream",
        "nonsense",
    ],
)
def test_json_is_read_whatever_its_content_type(
    served: TestClient, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = served.post(
        "/transcribe", content=json.dumps(RECORDING), headers=headers
    )
    assert response.status_code == 200


def test_a_byte_order_mark_before_the_json_does_no_harm(served: TestClient) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(RECORDING).encode()
    assert served.post("/transcribe", content=content).status_code == 200


HINT = (
    ": send a JSON object with Content-Type: application/json, and in it the file's URL as"
    " 'audio' or the file in base64 as 'audio_base64'; or a form (multipart/form-data) with the"
    " file in its field 'file'"
)
UNCOMPRESSED = ": send it uncompressed and leave that header out"
NO_JSON = "The request body is not valid JSON"


@pytest.mark.parametrize(
    ("request_fields", "error"),
    [
        (
            {
                "content": b"--x--",
                "headers": {"content-type": "multipart/mixed; boundary=x"},
            },
            f"The request body is multipart/mixed{HINT}",
        ),
        (
            {"data": {"audio": "https://example.com/a.mp3"}},
            f"The request body is application/x-www-form-urlencoded and not JSON{HINT}",
        ),
        (
            {"content": b"\x89PNG", "headers": {"content-type": "image/png"}},
            f"The request body is image/png{HINT}",
        ),
        (
            {"content": b"hello", "headers": {"content-type": "text/plain"}},
            f"The request body is text/plain and not JSON{HINT}",
        ),
        (
            {
                "content": gzip.compress(b"{}"),
                "headers": {"content-encoding": "gzip"},
            },
            f"The request body's Content-Encoding is 'gzip'{UNCOMPRESSED}",
        ),
        (
            {"content": b"{}", "headers": {"content-encoding": "br"}},
            f"The request body's Content-Encoding is 'br'{UNCOMPRESSED}",
        ),
    ],
    ids=["parts", "form", "image", "text", "gzip", "brotli"],
)
def test_a_body_that_is_something_else_is_called_by_its_name(
    served: TestClient, request_fields: dict[str, Any], error: str
) -> None:
    response = served.post("/transcribe", **request_fields)
    assert response.status_code == 415
    assert response.json() == {"error": error, "type": "unsupported_media_type"}


@pytest.mark.parametrize(
    ("content", "content_type", "error"),
    [
        (b"", "application/json", f"The request body is empty{HINT}"),
        (b" \n", "text/plain", f"The request body is empty{HINT}"),
        (
            b"{'audio': 'x'}",
            # What curl -d says of every body.
            "application/x-www-form-urlencoded",
            f"{NO_JSON}: Expecting property name enclosed in double quotes at line 1, column 2",
        ),
        (
            b'{"audio": "x",\n "model": turbo}',
            "application/json",
            f"{NO_JSON}: Expecting value at line 2, column 11",
        ),
        (
            b'{"audio": "\xff"}',
            "application/json",
            f"{NO_JSON}: no UTF-8",
        ),
    ],
)
def test_json_that_breaks_off_is_told_where(
    served: TestClient, content: bytes, content_type: str, error: str
) -> None:
    headers = {"content-type": content_type}
    response = served.post("/transcribe", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json() == {"error": error, "type": "invalid_request"}


@pytest.mark.parametrize(
    ("method", "path", "fields", "line"),
    [
        ("GET", "/nowhere?key=SECRET", {}, "status=404 reason=not_found"),
        ("GET", "/transcribe", {}, "status=405 reason=method_not_allowed"),
        ("GET", "/health?key=SECRET", {}, "status=422 reason=invalid_request"),
        ("POST", "/transcribe", {"content": b"{"}, "status=422 reason=invalid_request"),
        (
            "POST",
            "/transcribe",
            {"files": {"SECRET": b"SECRET"}},
            "status=422 reason=invalid_request",
        ),
        # The Router's own line, and no second one.
        ("POST", "/transcribe", {"json": {}}, "status=422 reason=invalid_request"),
        ("POST", "/transcribe", {"json": RECORDING}, "status=200 reason=ok"),
    ],
)
def test_every_request_that_is_refused_has_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    fields: dict[str, Any],
    line: str,
) -> None:
    headers = {"x-request-id": "the-callers-own"}
    with caplog.at_level(logging.INFO, "deployments"):
        client().request(method, path, headers=headers, **fields)
    lines = [record.getMessage() for record in caplog.records]
    lines = [text for text in lines if "request_id=" in text]
    assert len(lines) == 1
    assert lines[0].startswith("request_id=the-callers-own model=")
    assert line in lines[0] and "SECRET" not in lines[0]


def test_a_question_that_is_answered_has_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = client()
    with caplog.at_level(logging.INFO, "deployments"):
        for path in ("/health", "/models", "/docs"):
            assert served.get(path).status_code == 200
    assert not [r for r in caplog.records if "request_id=" in r.getMessage()]


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
def test_a_failure_outside_a_transcription_is_logged_by_its_kind_and_place(
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = api.build(BrokenRouter())  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "deployments"):
        response = TestClient(app).get(path, headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()["type"]) == (500, "internal_error")
    # Another test's server may still log what its callers did.
    [line] = [text for text in caplog.messages if "request_id=mine" in text]
    assert "reason=ValueError@routers.py:" in line
    assert "SECRET" not in caplog.text and "Traceback" not in caplog.text


def test_a_fault_of_a_route_itself_is_logged_by_its_kind_and_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = api.build(router(Handle()))

    @app.get("/broken")
    def broken() -> None:
        raise ValueError("SECRET")

    with caplog.at_level(logging.INFO, "deployments"):
        # This client raises what a server would log with its traceback.
        response = TestClient(app).get("/broken")
    assert (response.status_code, response.json()["type"]) == (500, "internal_error")
    [line] = [text for text in caplog.messages if "status=500" in text]
    assert "reason=ValueError@test_http.py:" in line
    assert response.headers["x-request-id"] in line
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    "path", ["/health", "/nowhere", "/transcribe", "/v1/nowhere", "/v1/models"]
)
def test_every_answer_has_an_id_and_a_callers_own_is_for_the_proxy_to_repeat(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "deployments"):
        response = client().get(path)
    [request_id] = response.headers.get_list("x-request-id")
    assert len(request_id) == 32
    lines = [text for text in caplog.messages if "reason=" in text]
    assert all(text.startswith(f"request_id={request_id} ") for text in lines)
    own = client().get(path, headers={"x-request-id": "mine"})
    assert own.headers.get_list("x-request-id") == []


def test_every_route_describes_the_statuses_of_keys_and_failures() -> None:
    paths = api.build(router(Handle())).openapi()["paths"]
    assert {"401", "403", "500"} <= set(paths["/transcribe"]["post"]["responses"])
    for path in ("/health", "/ready", "/ping"):
        assert "500" in paths[path]["get"]["responses"]


def test_a_caller_who_leaves_during_the_upload_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages = [
        {"type": "http.request", "body": b'{"audio', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_: Any) -> None:
        pass

    app = api.build(router(Handle()))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/transcribe",
        "headers": [],
    }
    scope |= {"query_string": b"", "root_path": ""}
    with caplog.at_level(logging.INFO, "deployments"):
        asyncio.run(app(scope, receive, send))
    [line] = [r for r in caplog.records if "request_id=" in r.getMessage()]
    assert line.levelno == logging.INFO
    assert "status=499 reason=request_cancelled" in line.getMessage()


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (OverloadedError("Too many requests wait for model 'base'"), "10"),
        (ModelUnavailableError("base", "no free share of a GPU"), "30"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_that_passes_says_when_to_try_again(
    error: WhisperServeError, retry_after: str
) -> None:
    failed = RayTaskError("stream", "", error).as_instanceof_cause()
    app = api.build(router(Handle(stream=[events(failed)])))
    response = TestClient(app).post("/transcribe", json=RECORDING)
    assert response.status_code == 503
    assert response.headers["retry-after"] == retry_after
