"""What known clients of OpenAI's API send and need, against the whole application on a real port.

The requests are those of `clients.py`, byte by byte; the model answers as told.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deployments.contract.errors import OverloadedError
from tests.api.openai import clients
from tests.api.openai.clients import Answer, send
from tests.api.openai.service import Service, failing
from tests.api.openai.transcripts import TEXT, TRANSCRIPT, segment_events, segments
from tests.support.handles import Response, events, transcript
from tests.support.routers import AUDIO as FOLDER

AUDIO = (FOLDER / "jfk-phone.wav").read_bytes()
SRT = """\
1
00:00:00,000 --> 00:00:03,000
And so, my fellow Americans.

2
00:00:07,000 --> 00:00:08,000
Ask not.

"""
# Nothing of a recording is in this file.
BROKEN = b"This is no recording." * 100


def speech() -> Response:
    """What the model says in answer to one request; answers at once need one each."""
    return events(*segment_events(), TRANSCRIPT)


def assert_error(answer: Answer, status: int) -> dict[str, Any]:
    """The answer is an error as OpenAI writes them; gives what it says."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error: Any = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return dict(error)


def events_of(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream, which is ended as SDKs expect."""
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    data = [
        line.removeprefix("data: ")
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    return [json.loads(text) for text in data[:-1]]


def test_open_webui_sends_chunks_of_unknown_length_and_gets_json_with_the_text(
    service: Service,
) -> None:
    answer = send(service.url, clients.open_webui(AUDIO, language="en"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["text"] == TEXT
    assert service.options.language_code == "en"


def test_open_webui_sends_the_parts_of_a_long_recording_at_once(
    service: Service,
) -> None:
    service.answers_in_turn(*(speech() for _ in range(4)))
    with ThreadPoolExecutor(4) as threads:
        request = clients.open_webui(AUDIO)
        answers = list(threads.map(lambda _: send(service.url, request), range(4)))
    assert [answer.json()["text"] for answer in answers] == [TEXT] * 4


def test_open_webui_shows_the_message_of_an_error_and_sends_a_part_again_without_language(
    service: Service,
) -> None:
    full = OverloadedError("Too many requests")
    service.answers_in_turn(events(failing(full)), speech())
    error = assert_error(
        send(service.url, clients.open_webui(AUDIO, language="en")), 503
    )
    again = send(service.url, clients.open_webui(AUDIO))
    assert error["message"] == "Too many requests"
    assert again.json()["text"] == TEXT


def test_open_webui_may_send_json_with_the_recording_inside(
    service: Service,
) -> None:
    answer = send(service.url, clients.open_webui_json(AUDIO))
    assert answer.status == 200, answer.text
    assert answer.json()["text"] == TEXT
    assert service.options.language_code == "en"


@pytest.mark.parametrize(
    "spelling", ["timestamp_granularities[]", "timestamp_granularities"]
)
def test_litellm_gets_the_duration_as_a_number_and_words_under_either_spelling(
    service: Service, spelling: str
) -> None:
    answer = send(service.url, clients.litellm(AUDIO, spelling)).json()
    assert answer["duration"] == pytest.approx(11.0, abs=0.1)
    assert isinstance(answer["words"], list) and len(answer["words"]) == 7
    assert "segments" not in answer
    assert service.options.word_timestamps
    assert service.options.language_code == "en"


def test_n8n_tests_its_credential_on_the_list_of_models(service: Service) -> None:
    answer = send(service.url, clients.get("/v1/models"))
    listed: Any = answer.json()
    assert (answer.status, listed["object"]) == (200, "list")
    assert "whisper-1" in [model["id"] for model in listed["data"]]


def test_n8n_names_whisper_1_and_gets_json(service: Service) -> None:
    answer = send(service.url, clients.n8n(AUDIO))
    assert answer.json()["text"] == TEXT
    options = service.options
    assert (options.language_code, options.temperature) == ("en", 0.2)


def test_langchain_gets_the_text_of_each_part(service: Service) -> None:
    answers = [
        send(service.url, clients.langchain(AUDIO, part)).json() for part in range(2)
    ]
    assert [answer["text"] for answer in answers] == [TEXT, TEXT]


def test_langchain_is_told_not_to_send_a_broken_part_nine_times(
    service: Service,
) -> None:
    answer = send(service.url, clients.langchain(BROKEN))
    error = assert_error(answer, 400)
    assert error["message"].startswith("Audio decoding failed: ")
    assert answer.headers["x-should-retry"] == "false"
    assert service.transcriptions == 0


def test_wyoming_openai_finds_no_server_of_another_kind_behind_its_probes(
    service: Service,
) -> None:
    local_ai = send(service.url, clients.get("/v1/readyz"))
    kokoro = send(service.url, clients.get("/v1/test"))
    speaches = send(service.url, clients.get("/health"))
    assert_error(local_ai, 404)
    assert_error(kokoro, 404)
    assert speaches.text != "OK"
    assert speaches.headers["content-type"] == "application/json"


def test_wyoming_openai_is_answered_though_it_sends_fields_of_other_servers(
    service: Service,
) -> None:
    answer = send(service.url, clients.wyoming_openai(AUDIO))
    assert answer.json()["text"] == TEXT
    options = service.options
    assert options.initial_prompt == "Kitchen, living room"
    assert options.language is None


def test_wyoming_openai_reads_the_whole_text_from_deltas(service: Service) -> None:
    answer = send(service.url, clients.wyoming_openai(AUDIO, stream=True))
    deltas = [e["delta"] for e in events_of(answer) if e["type"].endswith(".delta")]
    assert "".join(deltas) == TEXT


def test_wyoming_openai_gets_a_delta_of_silence_too(service: Service) -> None:
    service.answers(transcript("", segments=[]))
    answer = send(service.url, clients.wyoming_openai(AUDIO, stream=True))
    delta, done = events_of(answer)
    assert (delta["type"], delta["delta"]) == ("transcript.text.delta", "")
    assert (done["type"], done["text"]) == ("transcript.text.done", "")


@pytest.mark.parametrize(
    ("language", "code"),
    [("pt", "pt"), ("fil", "tl"), ("nb", "no"), ("iw", "he"), ("zh", "zh")],
)
def test_home_assistant_names_languages_that_whisper_has_under_another_code(
    service: Service, language: str, code: str
) -> None:
    answer = send(service.url, clients.home_assistant(AUDIO, language))
    assert answer.json()["text"] == TEXT
    assert service.options.language_code == code


def test_home_assistant_may_send_ogg(service: Service) -> None:
    ogg = (FOLDER / "sonnet.ogg").read_bytes()
    answer = send(service.url, clients.home_assistant(ogg, "en", "ogg"))
    assert answer.json()["text"] == TEXT


def test_home_assistant_is_told_when_whisper_does_not_know_the_language(
    service: Service,
) -> None:
    answer = send(service.url, clients.home_assistant(AUDIO, "ga"))
    error = assert_error(answer, 400)
    assert (error["param"], service.transcriptions) == ("language", 0)


def test_subtitle_edit_writes_names_without_quotes_and_gets_words_and_segments(
    service: Service,
) -> None:
    answer = send(service.url, clients.subtitle_edit(AUDIO))
    assert answer.status == 200, answer.text
    said: Any = answer.json()
    texts = [segment.unstripped_text for segment in segments()]
    assert [segment["text"] for segment in said["segments"]] == texts
    assert len(said["words"]) == 7


def test_subtitle_edit_finds_segments_at_the_end_of_a_stream(
    service: Service,
) -> None:
    answer = send(service.url, clients.subtitle_edit(AUDIO, stream=True))
    *deltas, done = events_of(answer)
    assert "".join(event["delta"] for event in deltas) == done["text"] == TEXT
    assert [segment["start"] for segment in done["segments"]] == [0.0, 7.0]


def test_whisper_subs_gets_a_subtitle_file(service: Service) -> None:
    answer = send(service.url, clients.whisper_subs(AUDIO))
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == SRT


def test_openai_java_finds_numbers_where_its_types_have_numbers(
    service: Service,
) -> None:
    said: Any = send(service.url, clients.openai_java(AUDIO)).json()
    assert isinstance(said["duration"], float | int)
    assert isinstance(said["usage"]["seconds"], float | int)
    numbers = {"start", "end", "temperature", "avg_logprob"}
    numbers |= {"compression_ratio", "no_speech_prob"}
    for segment in said["segments"]:
        assert set(segment) == {"id", "seek", "text", "tokens", *numbers}
        assert isinstance(segment["id"], int) and isinstance(segment["seek"], int)
        assert all(isinstance(segment[name], float | int) for name in numbers)
        assert all(isinstance(token, int) for token in segment["tokens"])


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/v1/audio/transcriptions"])
def test_a_base_url_may_end_in_v1_or_not(service: Service, path: str) -> None:
    answer = send(service.url, clients.curl(AUDIO, path))
    models = send(
        service.url, clients.get(path.replace("audio/transcriptions", "models"))
    )
    assert answer.json()["text"] == TEXT
    assert models.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/v1/audio/transcriptions",
        "/v1/audio/transcriptions/audio/transcriptions",
        "/v1/audio/transcription",
    ],
)
def test_a_base_url_that_is_wrong_is_answered_with_where_the_routes_are(
    service: Service, path: str
) -> None:
    error = assert_error(send(service.url, clients.curl(AUDIO, path)), 404)
    assert error["message"] == (
        "Not found: GET /docs lists the routes; the base URL of OpenAI's clients ends with /v1"
    )
    assert service.transcriptions == 0


def test_an_unforeseen_failure_is_told_in_the_same_form(service: Service) -> None:
    service.answers_in_turn(Response(5))
    error = assert_error(send(service.url, clients.curl(AUDIO)), 500)
    assert error["message"] == "Internal error; the log names it"
