"""Answers in OpenAI's formats."""

from typing import Any

import pytest

from deployments.api.openai.answer import as_json, content
from deployments.api.openai.answer_options import AnswerOptions
from tests.api.openai.transcripts import TEXT, answer

ALL = frozenset({"word", "segment"})


def given(format_: Any, task: Any = "transcribe", **fields: Any) -> Any:
    options = AnswerOptions(task, format_, granularities=ALL)  # type: ignore[arg-type]
    return content(answer(**fields), options)


def test_json_is_the_text_and_its_usage() -> None:
    assert given("json") == {
        "text": TEXT,
        "usage": {"type": "duration", "seconds": 9},
    }
    assert given("json", "translate") == {"text": TEXT}


def test_verbose_json_has_every_key_of_openais_schema() -> None:
    body = given("verbose_json")
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
    body = given("verbose_json", "translate")
    assert (body["task"], body["language"]) == ("translate", "english")


def test_the_text_of_any_script_is_readable() -> None:
    assert "Grüße, 世界" in as_json(given("json", transcription="Grüße, 世界"))
    assert given("text", transcription="世界") == "世界\n"


WARNINGS = ["initial_prompt has 300 tokens", "Die Datei ist abgeschnitten – 世界\n"]


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_warnings_stand_in_json(format_: str) -> None:
    assert given(format_, warnings=WARNINGS)["warnings"] == WARNINGS
    assert "warnings" not in given(format_)


def test_warnings_name_fields_as_the_client_did() -> None:
    options = AnswerOptions(
        "transcribe", names={"initial_prompt": "prompt"}, warnings=("a",)
    )
    body = content(answer(warnings=WARNINGS), options)
    assert isinstance(body, dict)
    assert body["warnings"] == ["a", "prompt has 300 tokens", WARNINGS[1]]
