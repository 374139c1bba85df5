"""Answers in OpenAI's formats as HTTP responses."""

import json
from typing import Any

import pytest
from starlette.responses import Response

from deployments.api.openai.answer_options import AnswerOptions
from deployments.api.openai.response import answer_response
from deployments.http_errors import WARNINGS_HEADER
from tests.api.openai.transcripts import answer

WARNINGS = ["initial_prompt has 300 tokens", "Die Datei ist abgeschnitten – 世界\n"]


def response(format_: Any, **fields: Any) -> Response:
    return answer_response(answer(**fields), AnswerOptions("transcribe", format_))


@pytest.mark.parametrize("format_", ["json", "verbose_json"])
def test_json_has_its_warnings_in_its_body(format_: str) -> None:
    found = response(format_, warnings=WARNINGS)
    assert found.headers["content-type"] == "application/json"
    assert json.loads(bytes(found.body))["warnings"] == WARNINGS
    assert WARNINGS_HEADER not in found.headers


@pytest.mark.parametrize(
    ("format_", "media_type"),
    [("text", "text/plain"), ("srt", "text/plain"), ("vtt", "text/vtt")],
)
def test_a_text_format_has_its_media_type(format_: str, media_type: str) -> None:
    found = response(format_, transcription="世界")
    assert found.headers["content-type"] == f"{media_type}; charset=utf-8"


@pytest.mark.parametrize("format_", ["text", "srt", "vtt"])
def test_warnings_of_other_formats_stand_in_a_header(format_: str) -> None:
    header = response(format_, warnings=WARNINGS).headers[WARNINGS_HEADER]
    assert header.isascii() and header.isprintable()
    assert json.loads(header) == WARNINGS
    assert WARNINGS_HEADER not in response(format_).headers


def test_a_header_has_room_for_some_warnings_only() -> None:
    header = response("text", warnings=["x" * 300] * 50).headers[WARNINGS_HEADER]
    assert len(header) <= 2000
    assert json.loads(header) == ["x" * 300] * 6 + ["and 44 more"]
    header = response("text", warnings=["x" * 3000]).headers[WARNINGS_HEADER]
    assert json.loads(header) == ["and 1 more"]
