"""Answers in OpenAI's formats."""

import json
from typing import Any

import pytest

from deployments.api.openai.answer import WARNINGS_HEADER, Rendered, render
from deployments.api.openai.answer_options import AnswerOptions
from tests.api.openai.transcripts import TEXT, answer

ALL = frozenset({"word", "segment"})


def rendered(format_: Any, task: Any = "transcribe", **fields: Any) -> Rendered:
    options = AnswerOptions(task, format_, granularities=ALL)  # type: ignore[arg-type]
    return render(answer(**fields), options)


def test_json_is_the_text_and_its_usage() -> None:
    found = rendered("json")
    assert found.media_type == "application/json"
    assert json.loads(found.text) == {
        "text": TEXT,
        "usage": {"type": "duration", "seconds": 9},
    }
    assert json.loads(rendered("json", "translate").text) == {"text": TEXT}


def test_verbose_json_has_every_key_of_openais_schema() -> None:
    body = json.loads(rendered("verbose_json").text)
    assert list(body) == [
        "task",
        "language",
        "duration",
        "text",
        "segments",
        "words",
        "usage",
    ]
    assert (body["task"], body["language"]) == ("transcribe", "portuguese")
    assert body["duration"] == 8.2
    assert body["segments"][1] == {
        "id": 1,
        "seek": 0,
        "start": 7.0,
        "end": 8.0,
        "text": " Ask not.",
        "tokens": [50364, 400, 50514],
        "temperature": 0.0,
        # NaN in the transcript, for which typed clients have no room.
        "avg_logprob": 0.0,
        "compression_ratio": 0.75,
        "no_speech_prob": 0.125,
    }
    assert body["words"][0] == {"word": "And", "start": 0.0, "end": 0.5}


def test_a_translation_is_english() -> None:
    body = json.loads(rendered("verbose_json", "translate").text)
    assert (body["task"], body["language"]) == ("translate", "english")


def test_the_text_of_any_script_is_readable() -> None:
    assert "Grüße, 世界" in rendered("json", transcription="Grüße, 世界").text
    assert rendered("text", transcription="世界") == Rendered(
        "世界\n", "text/plain; charset=utf-8"
    )


WARNINGS = ["initial_prompt has 300 tokens", "Die Datei ist abgeschnitten – 世界\n"]


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_warnings_stand_in_json(format_: str) -> None:
    found = rendered(format_, warnings=WARNINGS)
    assert json.loads(found.text)["warnings"] == WARNINGS
    assert not found.headers
    assert "warnings" not in json.loads(rendered(format_).text)


@pytest.mark.parametrize("format_", ["text", "srt", "vtt"])
def test_warnings_of_other_formats_stand_in_a_header(format_: str) -> None:
    header = rendered(format_, warnings=WARNINGS).headers[WARNINGS_HEADER]
    assert header.isascii() and header.isprintable()
    assert json.loads(header) == WARNINGS
    assert not rendered(format_).headers


def test_a_header_has_room_for_some_warnings_only() -> None:
    header = rendered("text", warnings=["x" * 300] * 50).headers[WARNINGS_HEADER]
    assert len(header) <= 2000
    assert json.loads(header) == ["x" * 300] * 6 + ["and 44 more"]
    header = rendered("text", warnings=["x" * 3000]).headers[WARNINGS_HEADER]
    assert json.loads(header) == ["and 1 more"]


def test_warnings_name_fields_as_the_client_did() -> None:
    options = AnswerOptions(
        "transcribe", names={"initial_prompt": "prompt"}, warnings=("a",)
    )
    body = json.loads(render(answer(warnings=WARNINGS), options).text)
    assert body["warnings"] == ["a", "prompt has 300 tokens", WARNINGS[1]]
