"""Jobs that hold a call of OpenAI's API, on a router that answers as told."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from deployments.config import AppArgs, ModelArgs
from deployments.contract.answer import Result, SegmentEvent
from deployments.contract.errors import AudioUrlError
from deployments.runpod.handler import JobHandler
from deployments.runpod.job_api import JobApi
from deployments.runpod.settings import read_settings
from tests.runpod.examples import DONE, answer_with, progress, segment
from tests.runpod.test_handler import LOST, Router
from tests.support.job_api import JobApi as JobApiStandIn

TRANSCRIPTIONS = "/v1/audio/transcriptions"
URL = "https://example.com/a.mp3"
ARGS = AppArgs(models=[ModelArgs(name=name) for name in ("base", "base.en", "turbo")])


async def call(
    router: Router,
    fields: Any = None,
    route: Any = TRANSCRIPTIONS,
    api: JobApi | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    jobs = JobHandler(router, read_settings(environment), ARGS, api)  # type: ignore[arg-type]
    job_input = {"openai_route": route}
    if fields is not None:
        job_input["openai_input"] = fields
    return await jobs.handle({"id": "job", "input": job_input})


def spoken(number: int, text: str) -> SegmentEvent:
    """A segment with the blank in front that Whisper gives its text."""
    plain = segment(number, text).segment
    return SegmentEvent(segment=plain.model_copy(update={"unstripped_text": text}))


def asked(router: Router) -> dict[str, Any]:
    """What the Router was asked for."""
    [(request, job_id, _, _)] = router.calls
    assert job_id == "job"
    return dict(request)


@pytest.mark.parametrize(
    ("source", "native"),
    [
        ({"url": URL}, {"audio": URL}),
        ({"audio_url": URL}, {"audio": URL}),
        ({"audio_url": {"url": URL}}, {"audio": URL}),
        ({"file": "AAAA"}, {"audio_base64": "AAAA"}),
        (
            {"file": "data:audio/wav;base64,AAAA"},
            {"audio": "data:audio/wav;base64,AAAA"},
        ),
        ({"input_audio": {"data": "AAAA", "format": "wav"}}, {"audio_base64": "AAAA"}),
    ],
    ids=lambda value: next(iter(value)),
)
async def test_the_recording_is_a_url_or_base64(
    source: dict[str, Any], native: dict[str, Any]
) -> None:
    router = Router([progress(10), DONE])
    result = await call(router, source | {"model": "whisper-1"})
    assert result == {"text": "short", "usage": {"type": "duration", "seconds": 1}}
    assert native.items() <= asked(router).items()
    assert asked(router)["model"] == "base"


@pytest.mark.parametrize(
    "route", [TRANSCRIPTIONS, "audio/transcriptions/", f"{TRANSCRIPTIONS}?x=1"]
)
async def test_the_route_is_read_as_paths_are(route: str) -> None:
    router = Router([DONE])
    await call(router, {"url": URL}, route)
    assert asked(router)["task"] == "transcribe"


async def test_a_translation_is_asked_for_as_one() -> None:
    router = Router([DONE])
    result = await call(router, {"url": URL}, "/v1/audio/translations")
    assert result == {"text": "short"}
    assert asked(router)["task"] == "translate"


async def test_each_format_is_an_object_or_a_text() -> None:
    results = {}
    for name in ("json", "verbose_json", "text", "srt", "vtt"):
        fields = {"url": URL, "response_format": name}
        results[name] = await call(Router([DONE]), fields)
    assert results["verbose_json"]["task"] == "transcribe"
    assert results["verbose_json"]["segments"][0]["tokens"] == [50000] * 100
    assert results["text"] == "short\n"
    assert results["srt"].startswith("1\n00:00:00,000 --> 00:00:01,000\n")
    assert results["vtt"].startswith("WEBVTT\n")
    # The SDK and the job API take them all.
    json.dumps(results, allow_nan=False)


async def test_a_stream_goes_to_the_jobs_stream_as_it_would_go_over_http(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    done = Result(result=answer_with(1).model_copy(update={"transcription": "One two"}))
    router = Router([spoken(0, " One"), progress(10), spoken(1, " two"), done])
    fields = {"url": URL, "stream": True}
    assert (await call(router, fields, api=api))["text"] == "One two"
    assert router.calls[0][2:] == (True, True)
    pieces = [post.body["output"] for post in stand_in.of("job", "stream")]
    *messages, end = "".join(pieces).split("\n\n")
    assert end == ""
    assert all(message.startswith("data: ") for message in messages)
    assert messages.pop() == "data: [DONE]"
    events = [json.loads(message.removeprefix("data: ")) for message in messages]
    deltas = [event["delta"] for event in events if "delta" in event]
    assert "".join(deltas) == events[-1]["text"] == "One two"
    assert events[-1]["type"] == "transcript.text.done"


async def test_a_stream_that_fails_tells_so_and_so_does_the_job(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    failure = RayTaskError("events", "trace", AudioUrlError("HTTP 403 Forbidden"))
    router = Router([failure.as_instanceof_cause()])
    text = "Audio download failed: HTTP 403 Forbidden"
    result = await call(router, {"url": URL, "stream": True}, api=api)
    assert result == {"error": text}
    [post] = stand_in.of("job", "stream")
    told = json.loads(post.body["output"].removeprefix("data: "))
    assert told["error"]["message"] == text
    assert told["error"]["param"] == "url"


async def test_a_router_that_dies_is_asked_once_more() -> None:
    router = Router([progress(10), ActorDiedError()], [DONE])
    assert (await call(router, {"url": URL}))["text"] == "short"
    router = Router([ActorDiedError()], [ActorDiedError()])
    assert await call(router, {"url": URL}) == {"error": LOST}


async def test_the_environments_defaults_apply_and_words_follow_the_format() -> None:
    environment = {
        "WHISPER_LANGUAGE": "pt",
        "WHISPER_BEAM_SIZE": "3",
        "WHISPER_WORD_TIMESTAMPS": "true",
    }
    router = Router([DONE])
    await call(router, {"url": URL}, environment=environment)
    request = asked(router)
    assert (request["language"], request["beam_size"]) == ("pt", 3)
    assert request["word_timestamps"] is False
    # By the name that the client has for it, the model knows English only.
    router = Router([DONE])
    fields = {
        "url": URL,
        "model": "openai/whisper-base.en",
        "response_format": "verbose_json",
        "timestamp_granularities": ["word"],
    }
    await call(router, fields, environment=environment)
    assert "language" not in asked(router)
    assert asked(router)["word_timestamps"] is True


@pytest.mark.parametrize(
    ("fields", "route", "text"),
    [
        (None, TRANSCRIPTIONS, "Missing required parameter: 'openai_input' (the"),
        ({}, TRANSCRIPTIONS, "Missing required parameter: 'openai_input' (the"),
        ("a", TRANSCRIPTIONS, "The request must be a JSON object"),
        ({"model": "base"}, TRANSCRIPTIONS, "Missing required parameter: 'file' (th"),
        ({"url": URL, "stream": 2}, TRANSCRIPTIONS, "Invalid stream: must be true or"),
        ({"url": URL, "model": "x"}, TRANSCRIPTIONS, "Invalid model: 'x' does not ex"),
        ({}, "/v1/chat/completions", "Invalid openai_route: 'chat/completions' is no"),
        ({}, 5, "Invalid openai_route: must be a string"),
        (None, "/v1/models/gpt-5", "Invalid model: 'gpt-5' does not exist"),
    ],
)
async def test_what_is_wrong_is_said_in_the_clients_own_words(
    fields: Any, route: Any, text: str
) -> None:
    result = await call(Router(), fields, route)
    assert set(result) == {"error"}
    assert result["error"].startswith(text)


async def test_the_models_are_listed_and_described() -> None:
    listed = await call(Router(), None, "/v1/models")
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert {"base", "turbo", "whisper-1"} <= set(names)
    for name in ("turbo", "openai/whisper-large-v3-turbo"):
        model = await call(Router(), {}, f"/v1/models/{name}")
        assert (model["id"], model["name"]) == (name, "turbo")
    json.dumps(listed, allow_nan=False)


async def test_a_result_over_the_limit_loses_its_tokens_or_is_refused() -> None:
    fields = {"url": URL, "response_format": "verbose_json"}
    limit = {"WHISPER_MAX_RESULT_BYTES": "1000"}
    result = await call(Router([DONE]), fields, environment=limit)
    assert result["segments"][0]["tokens"] == []
    assert result["warnings"][-1].startswith("The segments' tokens are left out")
    long = Result(
        result=answer_with(1).model_copy(update={"transcription": "x" * 2000})
    )
    for kind in ("text", "json"):
        result = await call(
            Router([long]), fields | {"response_format": kind}, environment=limit
        )
        assert "transcribe the recording in parts" in result["error"]
