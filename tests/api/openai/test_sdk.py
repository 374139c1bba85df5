"""OpenAI's own Python client, in its strict mode, against the routes on a real port.

The models behind them are scripted; the recordings are read and decoded in earnest.
"""

import io
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI
from openai.types.audio import (
    Transcription,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from deployments.contract.chunking import ServerVad
from deployments.contract.errors import (
    DecodingLimitError,
    ModelUnavailableError,
    OverloadedError,
    RequestTimeoutError,
    ServiceUnavailableError,
    TranscriptionError,
    WhisperServeError,
)
from tests.api.openai.service import Service, failing
from tests.api.openai.transcripts import TEXT, TRANSCRIPT, segment_events
from tests.support.app import wait_for
from tests.support.handles import events, transcript
from tests.support.http_server import served_file
from tests.support.routers import AUDIO

RECORDING = AUDIO / "jfk-phone.wav"
SRT = "1\n00:00:00,000 --> 00:00:03,000\nAnd so, my fellow Americans.\n"


def transcribe(client: OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {"file": RECORDING, "model": "whisper-1"}
    return client.audio.transcriptions.create(**given | fields)


def translate(client: OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {"file": RECORDING, "model": "base"}
    with pytest.warns(DeprecationWarning):
        return client.audio.translations.create(**given | fields)


def test_a_transcription(client: OpenAI) -> None:
    answer = transcribe(client)
    assert isinstance(answer, Transcription)
    assert answer.text == TEXT
    assert answer.usage is not None and answer.usage.type == "duration"
    assert answer.usage.seconds == 11


@pytest.mark.parametrize("path", ["/v1", ""])
def test_a_base_url_may_end_with_v1_or_not(service: Service, path: str) -> None:
    with service.client(path) as client:
        assert transcribe(client).text == TEXT
        assert client.models.list().data


@pytest.mark.parametrize(
    ("granularities", "segments", "words"),
    [
        ({}, 2, None),
        ({"timestamp_granularities": ["segment"]}, 2, None),
        ({"timestamp_granularities": ["word"]}, None, 7),
        ({"timestamp_granularities": ["word", "segment"]}, 2, 7),
        ({"timestamp_granularities": "word"}, None, 7),
        ({"extra_body": {"timestamp_granularities": "word,segment"}}, 2, 7),
        ({"extra_body": {"timestamp_granularities[0]": "word"}}, None, 7),
        ({"extra_body": {"extra_body[timestamp_granularities][]": "word"}}, None, 7),
    ],
    ids=lambda value: str(value),
)
def test_a_verbose_transcription_has_the_times_that_were_asked_for(
    client: OpenAI,
    service: Service,
    granularities: dict[str, Any],
    segments: int | None,
    words: int | None,
) -> None:
    answer = transcribe(client, response_format="verbose_json", **granularities)
    assert isinstance(answer, TranscriptionVerbose)
    assert (answer.text, answer.language, answer.duration) == (TEXT, "english", 11.0)
    assert (answer.segments and len(answer.segments)) == segments
    assert (answer.words and len(answer.words)) == words
    assert service.options.word_timestamps is (words is not None)


@pytest.mark.parametrize(
    ("response_format", "content_type", "start"),
    [
        ("text", "text/plain; charset=utf-8", f"{TEXT}\n"),
        ("srt", "text/plain; charset=utf-8", SRT),
        (
            "vtt",
            "text/vtt; charset=utf-8",
            "WEBVTT\n\n00:00.000 --> 00:03.000\nAnd so,",
        ),
    ],
)
def test_texts_are_bare_and_say_what_they_are(
    client: OpenAI, response_format: Any, content_type: str, start: str
) -> None:
    raw = client.audio.transcriptions.with_raw_response.create(
        file=RECORDING, model="whisper-1", response_format=response_format
    )
    assert raw.headers["content-type"] == content_type
    assert str(raw.parse()).startswith(start)


def test_a_translation(client: OpenAI, service: Service) -> None:
    assert isinstance(translate(client), Translation)
    assert service.options.task == "translate"
    verbose = translate(client, response_format="verbose_json")
    assert isinstance(verbose, TranslationVerbose)
    assert (verbose.language, verbose.text) == ("english", TEXT)
    assert verbose.segments is not None and len(verbose.segments) == 2
    assert translate(client, response_format="srt").startswith(SRT)


def test_silence_is_an_empty_text(client: OpenAI, service: Service) -> None:
    service.answers(transcript(""))
    assert transcribe(client, file=AUDIO / "silence.wav").text == ""
    verbose = transcribe(client, response_format="verbose_json")
    assert (verbose.text, verbose.segments) == ("", [])
    assert transcribe(client, response_format="srt") == ""


@pytest.mark.parametrize(
    "file",
    [
        RECORDING,
        RECORDING.read_bytes(),
        io.BytesIO(RECORDING.read_bytes()),
        ("sonnet.oga", (AUDIO / "sonnet.webm").read_bytes(), "audio/ogg"),
        ("veneno.mp4", (AUDIO / "veneno.m4a").read_bytes(), "video/mp4"),
        ("приве́т 录音.wav", RECORDING.read_bytes()),
        # A part of the form without a name of a file, which is a text to most parsers.
        (None, (AUDIO / "jfk.mp3").read_bytes()),
    ],
    ids=["path", "bytes", "unnamed", "webm", "m4a", "name", "no-name"],
)
def test_any_recording_is_read_whatever_its_name_and_type(
    client: OpenAI, file: Any
) -> None:
    assert transcribe(client, file=file).text == TEXT


def test_a_recording_is_downloaded_in_place_of_an_upload(service: Service) -> None:
    with served_file(RECORDING) as url:
        for form in (
            {"data": {"url": url, "model": "whisper-1"}},
            {"json": {"url": url, "model": "whisper-1"}},
            {"json": {"audio_url": url, "response_format": "json"}},
        ):
            response = requests.post(
                f"{service.url}/v1/audio/transcriptions", timeout=60, **multipart(form)
            )
            assert response.status_code == 200, response.text
            assert response.json()["text"] == TEXT


def multipart(request: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `requests` that send `data` as multipart without a file."""
    data = request.pop("data", None)
    files = {name: (None, value) for name, value in data.items()} if data else None
    return {"files": files, **request}


def deltas_and_done(stream: Any) -> tuple[list[str], Any]:
    *deltas, done = stream
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    return [event.delta for event in deltas], done


@pytest.mark.parametrize(
    "response_format", ["json", "text", "srt", "vtt", "verbose_json"]
)
def test_a_stream_gives_the_text_piece_by_piece_and_then_as_a_whole(
    client: OpenAI, response_format: Any
) -> None:
    stream = transcribe(client, stream=True, response_format=response_format)
    deltas, done = deltas_and_done(stream)
    assert deltas == ["And so, my fellow Americans.", " Ask not."]
    assert done.text == TEXT
    # Further keys, which clients may use that know them.
    assert (done.language, done.duration) == ("english", 11.0)
    assert len(done.segments) == 2
    if response_format == "srt":
        assert done.srt.startswith(SRT)


def test_a_stream_of_one_piece_has_a_delta_too(
    client: OpenAI, service: Service
) -> None:
    service.answers(transcript("hello"))
    deltas, done = deltas_and_done(transcribe(client, stream=True))
    assert (deltas, done.text) == (["hello"], "hello")
    service.answers(transcript(""))
    deltas, done = deltas_and_done(transcribe(client, stream=True))
    assert (deltas, done.text) == ([""], "")


def test_a_failure_within_a_stream_is_raised_by_the_client(
    client: OpenAI, service: Service
) -> None:
    error = failing(TranscriptionError("Transcription failed: out of GPU memory"))
    service.answers(segment_events()[0], error)
    stream = iter(transcribe(client, stream=True))
    assert next(stream).type == "transcript.text.delta"
    with pytest.raises(openai.APIError, match="out of GPU memory") as raised:
        next(stream)
    assert raised.value.code == "transcription_failed"


def test_a_wrong_request_for_a_stream_has_a_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        transcribe(client, stream=True, language="klingon")
    assert raised.value.param == "language"


def test_models_are_listed_and_found_by_any_of_their_names(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"base", "tiny.en", "whisper-1", "gpt-4o-transcribe"} <= set(names)
    for name in (*names, "openai/whisper-tiny.en", "gpt-4o-mini-transcribe-2025-12-15"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("org/unknown")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        (
            {"response_format": "diarized_json", "model": "gpt-4o-transcribe-diarize"},
            openai.BadRequestError,
            "response_format",
            "unsupported_value",
        ),
        ({"language": "klingon"}, openai.BadRequestError, "language", "invalid_value"),
        ({"prompt": "<|en|>"}, openai.BadRequestError, "prompt", "invalid_value"),
        ({"temperature": 2}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"file": b"no audio"}, openai.BadRequestError, "file", "invalid_audio"),
        ({"file": b""}, openai.BadRequestError, "file", "invalid_value"),
        (
            {"extra_body": {"url": "https://example.com/a.mp3"}},
            openai.BadRequestError,
            "url",
            "invalid_value",
        ),
        (
            {"response_format": "srt", "extra_body": {"max_line_width": "wide"}},
            openai.BadRequestError,
            "max_line_width",
            "invalid_value",
        ),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_once(
    client: OpenAI,
    service: Service,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    with pytest.raises(kind) as raised:
        transcribe(client, **fields)
    error = raised.value
    assert (error.param, error.code) == (param, code)
    assert error.type == "invalid_request_error"
    assert error.request_id
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.response.headers["x-should-retry"] == "false"
    assert service.transcriptions == 0


def test_an_empty_file_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        transcribe(client, file=b"")
    assert raised.value.param == "file"


def test_a_model_that_cannot_translate_is_the_wrong_model(client: OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="Models that translate: base"
    ) as raised:
        translate(client, model="turbo")
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TranscriptionError("Transcription failed"), 500),
        (RequestTimeoutError("The request took longer than 1 s"), 504),
        (DecodingLimitError("more decoding than allowed"), 400),
    ],
    ids=lambda value: str(value),
)
def test_what_would_fail_again_is_tried_once(
    client: OpenAI, service: Service, error: WhisperServeError, status: int
) -> None:
    service.answers(failing(error))
    with pytest.raises(openai.APIStatusError) as raised:
        transcribe(client)
    assert raised.value.status_code == status
    assert raised.value.code == error.type
    assert service.transcriptions == 1


@pytest.mark.parametrize(
    "error",
    [
        OverloadedError("Too many requests wait for model 'base'"),
        ServiceUnavailableError("The service stopped"),
        ModelUnavailableError("base", "no free share of a GPU"),
    ],
    ids=lambda error: error.type,
)
def test_what_passes_is_told_with_the_time_to_wait(
    service: Service, error: WhisperServeError
) -> None:
    service.answers(failing(error))
    with (
        service.client(max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as raised,
    ):
        transcribe(client)
    headers = raised.value.response.headers
    assert raised.value.status_code == 503
    assert headers["x-should-retry"] == "true"
    assert headers["retry-after"] == str(error.retry_after_s)
    assert raised.value.code == error.type


class Brief(OverloadedError):
    retry_after_s = 0


def test_the_client_tries_again_by_itself_what_passes(
    client: OpenAI, service: Service
) -> None:
    service.answers_in_turn(
        events(failing(Brief("Too many requests"))), events(TRANSCRIPT)
    )
    assert transcribe(client).text == TEXT
    assert service.transcriptions == 2


def test_fields_that_mean_nothing_here_do_no_harm(client: OpenAI) -> None:
    answer = transcribe(
        client,
        include=["logprobs"],
        extra_body={"vad_filter": False, "hotwords": "a"},
    )
    assert answer.text == TEXT
    assert answer.warnings == [
        "Fields without effect here: include, vad_filter, hotwords"
    ]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("auto", ServerVad()),
        ({"type": "server_vad", "threshold": 0.25}, ServerVad(threshold=0.25)),
        (
            {
                "type": "server_vad",
                "prefix_padding_ms": 0,
                "silence_duration_ms": 500,
            },
            ServerVad(prefix_padding_ms=0, silence_duration_ms=500),
        ),
    ],
)
def test_the_chunking_strategy_is_openais_own(
    client: OpenAI, service: Service, given: Any, read: ServerVad
) -> None:
    transcribe(client, chunking_strategy=given)
    assert service.options.chunking_strategy == read


def test_a_chunking_strategy_that_is_none_of_openais_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        transcribe(client, chunking_strategy={"type": "server_vad", "threshold": 2})
    assert raised.value.param == "chunking_strategy"


def test_options_of_whisper_are_fields_of_the_same_name(
    client: OpenAI, service: Service
) -> None:
    transcribe(
        client,
        prompt="Kennedy",
        temperature=0.2,
        language="pt-BR",
        extra_body={"beam_size": 3, "suppress_tokens": [1, 2], "patience": "null"},
    )
    options = service.options
    assert (options.initial_prompt, options.temperature) == ("Kennedy", 0.2)
    assert options.language_code == "pt"
    assert (options.beam_size, options.suppress_tokens) == (3, [1, 2])
    assert options.temperature_increment_on_fallback is None


def test_subtitles_are_laid_out_as_asked(client: OpenAI) -> None:
    answer = transcribe(
        client, response_format="srt", extra_body={"max_words_per_line": 3}
    )
    assert answer.startswith("1\n00:00:00,000 --> 00:00:01,500\nAnd so, my\n")


def test_an_answer_has_the_requests_id(client: OpenAI) -> None:
    assert transcribe(client)._request_id
    assert client.models.list()._request_id


def test_a_caller_who_leaves_a_stream_ends_the_work(
    client: OpenAI, service: Service
) -> None:
    response = service.answers(*segment_events() * 10_000, delay_s=0.01)
    with transcribe(client, stream=True) as stream:
        next(iter(stream))
    wait_for(lambda: response.cancelled)
