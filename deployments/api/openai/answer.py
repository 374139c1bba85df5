"""Answers as OpenAI writes them, in each response format."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments import catalog
from deployments.api.openai import subtitles
from deployments.api.openai.answer_options import AnswerOptions
from deployments.contract.answer import Answer, Segment

WARNINGS_HEADER = "x-whisper-warnings"
_PLAIN = "text/plain; charset=utf-8"
_MEDIA_TYPES = {
    "text": _PLAIN,
    "srt": _PLAIN,
    "vtt": "text/vtt; charset=utf-8",
}
# Proxies refuse headers of more than a few kilobytes.
_LONGEST_HEADER = 2000


@dataclass(frozen=True)
class Rendered:
    """The body of an answer, with its media type and the headers that belong to it."""

    text: str
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


def render(answer: Answer, options: AnswerOptions) -> Rendered:
    """The answer in the format that the client wants.

    Takes long for hours of words.
    """
    warnings = warnings_of(answer, options)
    if options.format in ("json", "verbose_json"):
        if options.format == "json":
            body = {"text": answer.transcription, **_usage(answer, options)}
        else:
            body = {
                "task": options.task,
                **details(answer, options),
                **_usage(answer, options),
            }
        told = {"warnings": warnings} if warnings else {}
        return Rendered(as_json(body | told), "application/json")
    headers = {WARNINGS_HEADER: _as_header(warnings)} if warnings else {}
    return Rendered(plain_text(answer, options), _MEDIA_TYPES[options.format], headers)


def details(answer: Answer, options: AnswerOptions) -> dict[str, Any]:
    """What verbose_json tells: language, duration, text, and segments or words or both."""
    found: dict[str, Any] = {
        "language": _language(answer, options),
        "duration": answer.duration,
        "text": answer.transcription,
    }
    if "segment" in options.granularities:
        found["segments"] = [_segment(segment) for segment in answer.segments]
    if "word" in options.granularities:
        found["words"] = [
            {"word": word.word, "start": word.start, "end": word.end}
            for word in answer.word_timestamps or []
        ]
    return found


def warnings_of(answer: Answer, options: AnswerOptions) -> list[str]:
    """What the client should know, with its own names for fields."""
    told = list(options.warnings)
    for warning in answer.warnings:
        field = warning.partition(" ")[0]
        told.append(options.names.get(field, field) + warning.removeprefix(field))
    return told


def plain_text(answer: Answer, options: AnswerOptions) -> str:
    """The body of the formats text, srt and vtt."""
    if options.format == "srt" or options.format == "vtt":
        return subtitles.write(options.format, answer.segments, options.subtitles)
    return f"{answer.transcription}\n"


def as_json(value: Any) -> str:
    """JSON on one line; no number is NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _usage(answer: Answer, options: AnswerOptions) -> dict[str, Any]:
    # OpenAI's schema has no usage of a translation.
    if options.task == "translate":
        return {}
    return {"usage": {"type": "duration", "seconds": math.ceil(answer.duration)}}


def _language(answer: Answer, options: AnswerOptions) -> str:
    code = "en" if options.task == "translate" else answer.detected_language
    return catalog.LANGUAGES.get(code, code)


def _segment(segment: Segment) -> dict[str, Any]:
    """All ten keys of OpenAI's schema, whose clients know no null there."""
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": segment.start,
        "end": segment.end,
        "text": segment.unstripped_text or segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob or 0.0,
        "compression_ratio": segment.compression_ratio or 0.0,
        "no_speech_prob": segment.no_speech_prob or 0.0,
    }


def _as_header(warnings: Sequence[str]) -> str:
    """A JSON list in ASCII; the last warnings are counted where there is no room for them."""
    for kept in range(len(warnings), -1, -1):
        more = len(warnings) - kept
        told = [*warnings[:kept], *([f"and {more} more"] if more else [])]
        header = json.dumps(told)
        if len(header) <= _LONGEST_HEADER:
            return header
    raise AssertionError("a count always has room")
