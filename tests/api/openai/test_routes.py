"""What OpenAI's routes say in HTTP: methods, paths, bodies, headers, and the bytes of a stream."""

import base64
import http.client
import json
import logging
from typing import Any

import jsonschema
import pytest
import requests
from starlette.testclient import TestClient

from deployments import api
from deployments.api import json_body
from deployments.api.openai import routes
from deployments.contract.errors import OverloadedError, WhisperServeError
from tests.api.openai.service import Service, failing
from tests.api.openai.transcripts import TEXT
from tests.support.app import wait_for
from tests.support.handles import FOREVER, Handle, events, transcript
from tests.support.routers import AUDIO, RECORDING, BrokenRouter, router

ROUTE = "/v1/audio/transcriptions"


def post(service: Service, **fields: Any) -> requests.Response:
    """An upload with these fields of the form."""
    files = {"file": ("speech.wav", (AUDIO / "jfk-phone.wav").read_bytes())}
    return requests.post(service.url + ROUTE, data=fields, files=files, timeout=60)


def error_of(response: requests.Response) -> dict[str, Any]:
    """The error in a body of OpenAI's form, which every client can read."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] in ("true", "false")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/v1/audio/transcriptions", 404, "not_found"),
        ("POST", "/v1/audio/speech", 404, "not_found"),
        ("POST", "/audio/speech", 404, "not_found"),
        ("POST", "/v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/audio/transcriptions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/base", 405, "method_not_allowed"),
        ("POST", "/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-5", 404, "model_not_found"),
        ("POST", "/v1/audio/translations", 400, "invalid_value"),
    ],
)
def test_every_failure_has_openais_form(
    service: Service, method: str, path: str, status: int, code: str
) -> None:
    response = requests.request(method, service.url + path, timeout=60)
    assert response.status_code == status
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def test_other_paths_keep_the_native_form(service: Service) -> None:
    for path in ("/nowhere", "/v1x", "/readyz", "/test"):
        response = requests.get(service.url + path, timeout=60)
        assert response.status_code == 404
        assert response.json()["type"] == "not_found"


def test_below_a_prefix_the_door_is_the_same() -> None:
    below = TestClient(api.build(router(Handle())), root_path="/speech")
    assert below.get("/speech/v1/none").json()["error"]["code"] == "not_found"
    assert below.get("/speech/none").json()["type"] == "not_found"


def test_an_unforeseen_failure_has_openais_form_too() -> None:
    app = api.build(BrokenRouter())  # type: ignore[arg-type]
    response = TestClient(app, raise_server_exceptions=False).get("/v1/models")
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "SECRET" not in response.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b'{"extra_body": 5}'],
)
def test_json_that_is_no_request_is_refused(service: Service, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = requests.post(
        service.url + ROUTE, data=body, headers=headers, timeout=60
    )
    assert response.status_code == 400
    error_of(response)


def test_query_parameters_are_left_alone(service: Service) -> None:
    models = requests.get(f"{service.url}/v1/models?api-version=2024-06-01", timeout=60)
    assert models.status_code == 200
    body = {"file": RECORDING["audio_base64"]}
    query = {"api-version": "2024-06-01"}
    answer = requests.post(service.url + ROUTE, json=body, params=query, timeout=60)
    assert answer.json()["text"] == TEXT


@pytest.mark.parametrize(
    "body",
    [
        {"input_audio": {"data": RECORDING["audio_base64"], "format": "wav"}},
        {"file": f"data:audio/wav;base64,{RECORDING['audio_base64']}"},
        {"audio_base64": RECORDING["audio_base64"], "stream": False},
    ],
    ids=["input_audio", "data-uri", "native"],
)
def test_a_recording_may_stand_in_json(service: Service, body: dict[str, Any]) -> None:
    response = requests.post(
        service.url + ROUTE, json=body | {"model": "whisper-1"}, timeout=60
    )
    assert response.json()["text"] == TEXT


def test_base64_that_is_none_is_named_as_the_client_named_it(service: Service) -> None:
    body = {"input_audio": {"data": "!!!", "format": "wav"}}
    error = error_of(requests.post(service.url + ROUTE, json=body, timeout=60))
    assert error["param"] == "input_audio"
    assert error["message"].startswith("Invalid input_audio: the text is no base64")


def test_a_download_that_fails_names_the_url(service: Service) -> None:
    body = {"url": "ftp://example.com/a.mp3"}
    response = requests.post(service.url + ROUTE, json=body, timeout=60)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("url", "audio_url_error")


def test_an_answer_repeats_the_id_that_serves_proxy_repeats_as_well() -> None:
    handle = Handle(stream=[events(transcript())])
    client = TestClient(api.build(router(handle)))
    own = client.post(ROUTE, json=RECORDING)
    assert len(own.headers["x-request-id"]) == 32
    # Serve's proxy gives requests an id and adds it to the answer by itself.
    proxied = client.post(ROUTE, json=RECORDING, headers={"x-request-id": "mine"})
    assert "x-request-id" not in proxied.headers


def test_ignored_fields_and_failures_are_logged_with_the_requests_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = TestClient(api.build(router(Handle(stream=[events(transcript())]))))
    headers = {"x-request-id": "mine"}
    with caplog.at_level(logging.INFO, "deployments"):
        client.post(ROUTE, json={**RECORDING, "vad_filter": "SECRET"}, headers=headers)
        client.post(ROUTE, json={"model": "SECRET", "url": "x"}, headers=headers)
    # Another test's server may still log what its callers did.
    ignored, done, refused = [m for m in caplog.messages if "request_id=mine" in m]
    assert ignored == "event=fields_ignored request_id=mine names=vad_filter"
    assert done.startswith("request_id=mine model=base status=200 reason=ok ")
    assert "status=404 reason=model_not_found" in refused
    assert "SECRET" not in refused


def test_warnings_of_subtitles_stand_in_a_header(service: Service) -> None:
    response = post(service, response_format="srt", vad_filter="true")
    assert json.loads(response.headers["x-whisper-warnings"]) == [
        "Fields without effect here: vad_filter"
    ]


def test_the_bytes_of_a_stream(service: Service) -> None:
    response = post(service, stream="true", response_format="json")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(": ping\n\n")
    *messages, end, nothing = response.text.removeprefix(": ping\n\n").split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    data = [json.loads(message.removeprefix("data: ")) for message in messages]
    *deltas, done = data
    assert "".join(event["delta"] for event in deltas) == done["text"] == TEXT


def test_pings_come_before_the_first_text(service: Service) -> None:
    response = service.answers(transcript(), delay_s=FOREVER)
    files = {"file": (AUDIO / "jfk-phone.wav").read_bytes()}
    with requests.post(
        service.url + ROUTE, data={"stream": "1"}, files=files, stream=True, timeout=60
    ) as stream:
        assert stream.status_code == 200
        assert next(stream.iter_lines()) == b": ping"
    wait_for(lambda: response.cancelled)


def test_a_caller_who_leaves_ends_the_work(service: Service) -> None:
    response = service.answers(transcript(), delay_s=FOREVER)
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"))
    headers = {"content-type": "application/json"}
    connection.request(
        "POST", ROUTE, json.dumps({"file": RECORDING["audio_base64"]}), headers
    )
    wait_for(lambda: service.transcriptions)
    connection.close()
    wait_for(lambda: response.cancelled)


@pytest.mark.parametrize(
    "error",
    [
        OverloadedError("Too many requests wait for model 'base'"),
        WhisperServeError("Internal error; the log names it"),
    ],
    ids=lambda error: error.type,
)
def test_a_stream_that_fails_at_once_has_a_status(
    error: WhisperServeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_EARLY_S", FOREVER)
    app = api.build(router(Handle(stream=[events(failing(error))])))
    response = TestClient(app).post(ROUTE, json={**RECORDING, "stream": True})
    assert response.status_code == error.status
    assert response.json()["error"]["code"] == error.type


def test_the_list_of_models_serves_both_doors(service: Service) -> None:
    for path in ("/models", "/v1/models"):
        body = requests.get(service.url + path, timeout=60).json()
        assert body["object"] == "list"
        by_id = {model["id"]: model for model in body["data"]}
        assert len(by_id) == len(body["data"])
        base, turbo = by_id["base"], by_id["turbo"]
        assert (base["object"], base["owned_by"]) == ("model", "openai")
        assert base["created"] == 1663718400  # 2022-09-21
        assert base["default"] and not turbo["default"]
        assert (base["slots"], base["running_replicas"]) == (8, 1)
        # An alias tells whose it is.
        assert by_id["large-v3-turbo"] == turbo | {"id": "large-v3-turbo"}
        assert by_id["whisper-1"]["name"] == "base"
    assert requests.get(f"{service.url}/models/whisper-1", timeout=60).json()["id"] == (
        "whisper-1"
    )


def test_models_of_the_users_own_and_their_names() -> None:
    from deployments.api.openai.models import model_list, one_model
    from deployments.config import AppArgs, ModelArgs

    own = ModelArgs(name="mine", checkpoint="/x.pt", base_model="large-v3")
    args = AppArgs(
        default_model="mine", models=[own], openai_models={"gpt-transcribe": "mine"}
    )
    rows = [
        {
            "name": "mine",
            "aliases": [],
            "default": True,
            "parameters": None,
            "multilingual": None,
            "weights_cached": True,
            "running_replicas": 0,
            "slots": None,
            "slots_in_use": None,
            "windows_waiting": None,
        }
    ]
    listed = model_list(rows, args)
    assert [model.id for model in listed.data] == [
        "mine",
        "gpt-transcribe",
        "whisper-1",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
    ]
    assert {model.owned_by for model in listed.data} == {"user"}
    assert one_model(rows, args, "GPT-transcribe").name == "mine"


def test_answers_are_of_the_documented_schema(service: Service) -> None:
    document = requests.get(f"{service.url}/openapi.json", timeout=60).json()

    def check(path: str, response: requests.Response) -> None:
        method = str(response.request.method).lower()
        answers = document["paths"][path][method]["responses"]
        content = answers[str(response.status_code)]["content"]
        schema = content[response.headers["content-type"].partition(";")[0]]["schema"]
        body = response.json()
        jsonschema.validate(body, schema | {"components": document["components"]})

    check(ROUTE, post(service))
    check(ROUTE, post(service, response_format="verbose_json"))
    check(ROUTE, post(service, temperature="hot"))
    check(ROUTE, post(service, model="gpt-5"))
    check("/v1/models", requests.get(f"{service.url}/v1/models", timeout=60))
    check("/models", requests.get(f"{service.url}/models", timeout=60))
    one = requests.get(f"{service.url}/v1/models/base", timeout=60)
    check("/v1/models/{name}", one)
    none = requests.get(f"{service.url}/v1/models/gpt-5", timeout=60)
    check("/v1/models/{name}", none)
    fields = document["paths"][ROUTE]["post"]["requestBody"]["content"]
    form = fields["multipart/form-data"]["schema"]["properties"]
    assert {"file", "url", "timestamp_granularities[]", "beam_size"} <= set(form)


def test_the_log_tells_the_status_that_the_client_got(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = TestClient(api.build(router(Handle())))
    wrong_field = {**RECORDING, "temperature": "hot"}
    no_audio = {"file": base64.b64encode(b"no audio").decode()}
    with caplog.at_level(logging.INFO, "deployments"):
        for body in (wrong_field, no_audio):
            assert app.post(ROUTE, json=body).status_code == 400
    lines = [text for text in caplog.messages if " reason=" in text]
    assert ["status=400" in line for line in lines] == [True, True]


@pytest.mark.parametrize(
    ("content", "status", "advice"),
    [
        (b"", 400, "the file's URL as 'url' or the file in base64 as 'file'"),
        (b"[" * (json_body.MAX_BODY_BYTES + 1), 413, "or give its URL as 'url'"),
    ],
    ids=["empty", "too large"],
)
def test_a_body_without_a_recording_is_told_openais_own_fields(
    content: bytes, status: int, advice: str
) -> None:
    response = TestClient(api.build(router(Handle()))).post(ROUTE, content=content)
    assert response.status_code == status
    assert advice in response.json()["error"]["message"]
    assert "audio" not in response.json()["error"]["message"]


def test_every_route_describes_the_statuses_of_keys_and_failures() -> None:
    paths = api.build(router(Handle())).openapi()["paths"]
    for path in (ROUTE, "/v1/models", "/models", "/v1/models/{name}"):
        [operation] = paths[path].values()
        assert {"401", "403", "500", "503"} <= set(operation["responses"])
    assert "422" not in paths["/v1/models/{name}"]["get"]["responses"]
