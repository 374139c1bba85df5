"""The native HTTP API over a real Router whose models answer as told. No Ray, no port."""

import asyncio
import json
import logging
import re
from typing import Any

import jsonschema
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from starlette.testclient import TestClient

from deployments import api
from deployments.api import json_body
from deployments.contract import errors
from deployments.contract.answer import Answer, SegmentEvent, SegmentWord
from deployments.contract.errors import (
    InvalidAudioError,
    ModelUnavailableError,
    OverloadedError,
    RequestTimeoutError,
    TranscriptionError,
    WhisperServeError,
)
from deployments.local import loopback
from deployments.replica.transcript import SlotUse
from tests.support.asgi import Connection, body_message, http_scope
from tests.support.handles import (
    FOREVER,
    PROGRESS,
    SEGMENT,
    Handle,
    Response,
    events,
    transcript,
)
from tests.support.http_server import served_file
from tests.support.routers import AUDIO, RECORDING, BrokenRouter, router


def client(handle: Handle, *names: str, **args: Any) -> TestClient:
    app = api.build(router(handle, *names, **args))
    return TestClient(app, raise_server_exceptions=False)


def answering(*items: Any) -> TestClient:
    return client(Handle(stream=[events(*items)]))


def raising(error: WhisperServeError) -> TestClient:
    """A client of a model that fails."""
    return answering(RayTaskError("stream", "", error).as_instanceof_cause())


def test_a_transcription_is_answered_as_json() -> None:
    response = answering(
        transcript(" grün ", segments=[SEGMENT.segment], language_probability=0.5)
    ).post("/transcribe", json=RECORDING, headers={"x-request-id": "mine"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "grün" in response.text
    answer = response.json()
    # These are there only when the request asks for them.
    asked_for = ("word_timestamps", "chunks")
    assert list(answer) == [
        name for name in Answer.model_fields if name not in asked_for
    ]
    assert answer["request_id"] == "mine"
    assert answer["segments"] == [SEGMENT.segment.model_dump()]


def test_a_request_may_stand_inside_input() -> None:
    posted = answering(transcript()).post("/transcribe", json={"input": RECORDING})
    assert posted.json()["transcription"] == "hello"


def test_audio_is_downloaded_from_its_url() -> None:
    with served_file(AUDIO / "jfk-phone.wav") as url:
        posted = answering(transcript()).post("/transcribe", json={"audio": url})
    assert posted.json()["duration"] == pytest.approx(11, abs=0.1)
    assert posted.json()["timings"]["download"] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidAudioError("it is empty"), 422),
        (ModelUnavailableError("base", "out of memory (cpu)"), 503),
        (OverloadedError("Too many requests wait for model 'base'"), 503),
        (RequestTimeoutError("The request took longer than 1 s"), 504),
        (TranscriptionError("Transcription failed: out of GPU memory"), 500),
        (WhisperServeError("Internal error; the log names it"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_answered_with_its_status_its_type_and_its_text(
    error: WhisperServeError, status: int
) -> None:
    response = raising(error).post("/transcribe", json=RECORDING)
    assert response.status_code == status == error.status
    assert response.json() == {"error": str(error), "type": error.type}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"not json", "The request body is not valid JSON"),
        (b"\xff", "The request body is not valid JSON"),
        (b"[" * 100_000, "The request body is not valid JSON"),
        (b"[]", "The request must be a JSON object"),
        (b"{}", "Missing required parameter: 'audio' (URL to audio file)"),
        (b'{"audio": "x", "colour": 1}', "Unknown parameter: 'colour'. Valid"),
        (b'{"audio": "x", "model": "huge"}', "Invalid model: 'huge'. Valid models: "),
        (b'{"audio": "x", "beam_size": 11}', "Invalid beam_size: must be an integer"),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused(body: bytes, error: str) -> None:
    response = answering(transcript()).post("/transcribe", content=body)
    assert response.status_code == 422
    assert response.json()["type"] == "invalid_request"
    assert response.json()["error"].startswith(error)


def test_a_url_and_a_host_at_fault_have_statuses_of_their_own() -> None:
    served = answering(transcript())
    bad_url = served.post("/transcribe", json={"audio": "ftp://example.com/a"})
    assert (bad_url.status_code, bad_url.json()["type"]) == (422, "audio_url_error")
    nobody = f"http://127.0.0.1:{loopback.free_port('127.0.0.1')}/a?token=secret"
    bad_host = served.post("/transcribe", json={"audio": nobody})
    assert (bad_host.status_code, bad_host.json()["type"]) == (502, "audio_host_error")
    assert "secret" not in bad_host.text and "127.0.0.1" not in bad_host.text


def test_a_body_larger_than_any_valid_request_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_body, "MAX_BODY_BYTES", 2 << 20)
    response = answering().post("/transcribe", content=b" " * (2 << 20) + b"{}")
    assert response.status_code == 413
    assert response.json() == {
        "error": "The request body is larger than 2 MiB: send a large file in a form, or give its"
        " URL as 'audio'",
        "type": "request_too_large",
    }


def test_the_largest_valid_file_fits_into_a_body() -> None:
    assert json_body.MAX_BODY_BYTES > (32 << 20) * 4 / 3


def test_a_deadline_is_answered() -> None:
    handle = Handle(stream=[events(transcript(), delay_s=FOREVER)])
    late = client(handle, request_timeout_s=0.02)
    response = late.post("/transcribe", json=RECORDING)
    assert (response.status_code, response.json()["type"]) == (504, "request_timeout")


def test_an_error_of_our_own_making_shows_nothing_of_itself() -> None:
    broken = client(Handle(stream=[Response(5)]))
    response = broken.post("/transcribe", json=RECORDING)
    assert response.status_code == 500
    assert response.json() == {
        "error": "Internal error; the log names it",
        "type": "internal_error",
    }


def test_an_error_outside_a_transcription_shows_nothing_of_itself() -> None:
    app = api.build(BrokenRouter())  # type: ignore[arg-type]
    response = TestClient(app, raise_server_exceptions=False).get("/health")
    assert response.status_code == 500
    assert response.json() == {
        "error": "Internal error; the log names it",
        "type": "internal_error",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/transcribe", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_what_does_not_exist_is_answered_in_the_same_form(
    method: str, path: str, status: int, kind: str
) -> None:
    response = client(Handle()).request(method, path)
    assert response.status_code == status
    assert response.json()["type"] == kind


def test_models_and_health_are_told() -> None:
    served = client(Handle(), "tiny.en", running=0)
    model = served.get("/models").json()["data"][0]
    assert model["name"] == "tiny.en"
    assert model["running_replicas"] == 0
    assert isinstance(model["weights_cached"], bool)
    assert served.get("/health").json() == {
        "application": "whisper",
        "status": "ok",
        "default_model": "tiny.en",
    }


def test_answers_are_of_the_documented_schema() -> None:
    words = transcript(segments=[SEGMENT.segment], words=[])
    served = client(
        Handle(stream=[events(words)], slots=[Response([SlotUse(8, 0, 0)])])
    )
    document = served.get("/openapi.json").json()

    def check(path: str, method: str, status: str, body: Any) -> None:
        response = document["paths"][path][method]["responses"][status]
        schema = response["content"]["application/json"]["schema"]
        jsonschema.validate(body, schema | {"components": document["components"]})

    check(
        "/transcribe", "post", "200", served.post("/transcribe", json=RECORDING).json()
    )
    refused = served.post("/transcribe", json={})
    check("/transcribe", "post", "422", refused.json())
    check("/models", "get", "200", served.get("/models").json())
    check("/health", "get", "200", served.get("/health").json())
    segments = document["components"]["schemas"]["Answer"]["properties"]["segments"]
    assert segments["items"] == {"$ref": "#/components/schemas/Segment"}
    with pytest.raises(jsonschema.ValidationError):
        check("/transcribe", "post", "200", refused.json())


def test_every_status_of_an_error_is_documented() -> None:
    document = answering().get("/openapi.json").json()
    documented = set(document["paths"]["/transcribe"]["post"]["responses"])
    of_errors = {
        str(kind.status)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, WhisperServeError)
    }
    # Nobody is left to read the answer to a request that was cancelled.
    of_errors -= {"499"}
    of_access = {"401", "403"}
    assert of_errors | of_access == documented - {"200"}


def test_the_documented_example_is_a_valid_request() -> None:
    document = answering().get("/openapi.json").json()
    body = document["paths"]["/transcribe"]["post"]["requestBody"]["content"]
    example = body["application/json"]["example"]
    jsonschema.validate(example, body["application/json"]["schema"])
    posted = answering(transcript()).post("/transcribe", content=json.dumps(example))
    assert posted.status_code == 200


def test_a_chunking_strategy_is_described_for_both_doors() -> None:
    document = answering().get("/openapi.json").json()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    known = {
        f"#/components/schemas/{name}" for name in document["components"]["schemas"]
    }
    assert references <= known
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        body = document["paths"][path]["post"]["requestBody"]["content"]
        for kind in ("application/json", "multipart/form-data"):
            field = body[kind]["schema"]["properties"]["chunking_strategy"]
            for right in ("auto", None, {"type": "server_vad", "threshold": 0.3}):
                jsonschema.validate(right, field)
            for wrong in ("vad", {"threshold": 2}, {"type": "auto"}, {"seconds": 5}):
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(wrong, field)


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose messages are named as they are."""
    events = []
    for block in text.split("\n\n"):
        if block.startswith(":") or not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['event']}"
        events.append(event)
    return events


EVENT_STREAM = {"Accept": "text/event-stream"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, EVENT_STREAM),
        ({}, {"Accept": "text/event-stream; q=0.9, application/json; q=0.1"}),
        ({"stream": True}, {}),
        ({"stream": "yes"}, {"Accept": "application/json"}),
    ],
)
def test_events_are_streamed_where_they_are_asked_for(
    body: dict[str, Any], headers: dict[str, str]
) -> None:
    with_words = SEGMENT.segment.model_copy(
        update={
            "words": [SegmentWord(word=" hello", start=0, end=1, probability=0.5)],
        }
    )
    said = SegmentEvent(segment=with_words)
    model = answering(PROGRESS, said, transcript(segments=[with_words]))
    response = model.post("/transcribe", json=RECORDING | body, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(": ping\n\n")
    stage, progress, segment, result = parsed(response.text)
    assert stage == {"event": "stage", "stage": "decoding"}
    assert progress == {"event": "progress", "done": 0.0, "total": 1.0}
    assert segment["segment"] == result["result"]["segments"][0]
    assert segment["segment"]["words"][0]["word"] == " hello"
    plain = answering(transcript(segments=[with_words]))
    answer = plain.post("/transcribe", json=RECORDING).json()
    same = {name: answer[name] for name in ("timings", "request_id")}
    assert result["result"] | same == answer


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"stream": False}, EVENT_STREAM),
        ({"stream": None}, {"Accept": "*/*"}),
        ({}, {"Accept": "application/json, text/event-stream"}),
        ({}, {"Accept": "text/event-stream; q=0"}),
    ],
)
def test_an_answer_is_given_whole_otherwise(
    body: dict[str, Any], headers: dict[str, str]
) -> None:
    model = answering(transcript())
    response = model.post("/transcribe", json=RECORDING | body, headers=headers)
    assert response.json()["transcription"] == "hello"


def test_stream_may_stand_inside_input_or_beside_it_and_in_a_form() -> None:
    model = answering(transcript())
    for request in (
        {"input": RECORDING | {"stream": True}},
        {"input": RECORDING, "stream": True},
    ):
        assert parsed(model.post("/transcribe", json=request).text)
    file = (AUDIO / "jfk-phone.wav").read_bytes()
    response = model.post("/transcribe", files={"file": file}, data={"stream": "true"})
    assert parsed(response.text)[-1]["result"]["transcription"] == "hello"


@pytest.mark.parametrize(
    "request_fields",
    [{"audio": ""}, RECORDING | {"model": "huge"}, RECORDING | {"stream": "perhaps"}],
)
def test_a_request_that_is_refused_before_any_work_is_answered_with_its_status(
    request_fields: dict[str, Any],
) -> None:
    response = answering(transcript()).post(
        "/transcribe", json=request_fields, headers=EVENT_STREAM
    )
    assert response.status_code == 422
    assert response.json()["type"] == "invalid_request"


def test_a_failure_during_the_work_is_the_last_event_of_the_stream() -> None:
    error = ModelUnavailableError("base", "out of memory (cpu)")
    response = raising(error).post(
        "/transcribe", json=RECORDING | {"stream": True, "model": "base"}
    )
    assert response.status_code == 200
    stage, failure = parsed(response.text)
    assert stage["event"] == "stage"
    assert failure == {
        "event": "error",
        "error": "Model 'base' is not available: out of memory (cpu)",
        "type": "model_unavailable",
        "status": 503,
    }


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_caller_whose_connection_is_lost_ends_the_work(
    streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    work = events(transcript(), delay_s=FOREVER)
    handle = Handle(stream=[work])
    app = api.build(router(handle))
    body = json.dumps(RECORDING | {"stream": streamed}).encode()
    connection = Connection(body_message(body))
    scope = http_scope("POST", "/transcribe")
    with caplog.at_level(logging.INFO, "deployments"):
        answer = asyncio.ensure_future(app(scope, connection.receive, connection.send))
        async with asyncio.timeout(30):
            while "stream" not in handle.calls:
                await asyncio.sleep(0.01)
            assert not work.cancelled
            # What Serve raises where the process of its proxy has died.
            connection.incoming.put_nowait(ActorDiedError())
            await answer
    assert work.cancelled
    [line] = [text for text in caplog.messages if "request_id=" in text]
    assert "status=499 reason=cancelled" in line
