"""Answers as OpenAI writes them, in each response format."""

import json
import math
from typing import Any

from deployments import catalog
from deployments.api.openai import subtitles
from deployments.api.openai.answer_options import AnswerOptions
from deployments.contract.answer import Answer, Segment


def content(answer: Answer, options: AnswerOptions) -> dict[str, Any] | str:
    """The answer in the format that the client wants: an object, or the text of a text format.

    Takes long for hours of words.
    """
    if options.format not in ("json", "verbose_json"):
        return plain_text(answer, options)
    body: dict[str, Any] = {"text": answer.transcription}
    if options.format == "verbose_json":
        body = {"task": options.task, **details(answer, options)}
    body |= _usage(answer, options)
    if warnings := warnings_of(answer, options):
        body["warnings"] = warnings
    return body


def details(answer: Answer, options: AnswerOptions) -> dict[str, Any]:
    """What verbose_json tells: language, duration, text, and segments or words or both."""
    found: dict[str, Any] = {
        "language": _language(answer, options),
        "duration": answer.duration,
        "text": answer.transcription,
    }
    if answer.chunks is not None:
        found["chunks"] = [chunk.model_dump() for chunk in answer.chunks]
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
    renamed = list(options.warnings)
    for warning in answer.warnings:
        field = warning.partition(" ")[0]
        renamed.append(options.names.get(field, field) + warning.removeprefix(field))
    return renamed


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
    # OpenAI's schema knows no null here.
    return "" if code is None else catalog.LANGUAGES.get(code, code)


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
