"""Answers as HTTP responses: JSON, or text whose warnings go into a header."""

import json
from collections.abc import Sequence

from fastapi import Response

from deployments.api.openai.answer import as_json, content, warnings_of
from deployments.api.openai.answer_options import AnswerOptions
from deployments.contract.answer import Answer
from deployments.http_errors import WARNINGS_HEADER

_PLAIN = "text/plain; charset=utf-8"
_MEDIA_TYPES = {
    "text": _PLAIN,
    "srt": _PLAIN,
    "vtt": "text/vtt; charset=utf-8",
}
# Proxies refuse headers of more than a few kilobytes.
_LONGEST_HEADER = 2000


def answer_response(answer: Answer, options: AnswerOptions) -> Response:
    """The response in the format that the client wants.

    Takes long for hours of words.
    """
    body = content(answer, options)
    if not isinstance(body, str):
        return Response(as_json(body), media_type="application/json")
    warnings = warnings_of(answer, options)
    headers = {WARNINGS_HEADER: _as_header(warnings)} if warnings else {}
    return Response(body, media_type=_MEDIA_TYPES[options.format], headers=headers)


def _as_header(warnings: Sequence[str]) -> str:
    """A JSON list in ASCII. Warnings without room in the header are counted at its end."""
    for kept in range(len(warnings), -1, -1):
        more = len(warnings) - kept
        listed = [*warnings[:kept], *([f"and {more} more"] if more else [])]
        header = json.dumps(listed)
        if len(header) <= _LONGEST_HEADER:
            return header
    raise AssertionError("a count always has room")
