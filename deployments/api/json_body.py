"""JSON as the body of an HTTP request."""

import json
from dataclasses import dataclass
from typing import Any

from deployments.contract.errors import (
    InvalidRequestError,
    UnsupportedMediaTypeError,
    WhisperServeError,
)
from deployments.contract.inline_audio import MAX_INLINE_AUDIO_BYTES
from deployments.contract.request import short

# Base64 takes four bytes for three; the rest of a request is small.
MAX_BODY_BYTES = MAX_INLINE_AUDIO_BYTES // 3 * 4 + (4 << 20)


@dataclass(frozen=True)
class RecordingFields:
    """The names of the fields in which an API takes a recording inside JSON."""

    url: str
    base64: str

    @property
    def what_to_send(self) -> str:
        """Advice for a caller whose body holds no recording."""
        return (
            "send a JSON object with Content-Type: application/json, and in it the file's URL as"
            f" '{self.url}' or the file in base64 as '{self.base64}'; or a form"
            " (multipart/form-data) with the file in its field 'file'"
        )


def parse_json(body: bytearray, media_type: str, recording: RecordingFields) -> Any:
    """The value in a body.

    media_type: in lower case, without parameters; empty where the request has none
    recording: named in errors

    JSON is read whatever content type comes with it: `curl -d` calls it form data.

    Raises UnsupportedMediaTypeError for a body that is something else and says so, and
    InvalidRequestError.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        place = _place(error)
    # Outside the except block, because its error holds the whole text.
    raise _refusal(body, media_type, place, recording)


def may_be_json(start: bytes | bytearray) -> bool:
    """Whether a body that begins so may be a JSON object or list; no audio file begins so."""
    return bytes(start[:100]).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _refusal(
    body: bytearray, media_type: str, place: str, recording: RecordingFields
) -> WhisperServeError:
    """The error of a body that is no JSON: says where its JSON breaks off, or what it is."""
    start = bytes(body[:100]).lstrip()
    if not start and len(body) < 100:
        return InvalidRequestError(
            f"The request body is empty: {recording.what_to_send}"
        )
    is_json = not media_type or media_type.endswith(("/json", "+json"))
    if is_json or may_be_json(start):
        return InvalidRequestError(f"The request body is not valid JSON: {place}")
    return UnsupportedMediaTypeError(
        f"The request body is {short(media_type)} and not JSON: {recording.what_to_send}"
    )


def _place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "too deeply nested" if isinstance(error, RecursionError) else "no UTF-8"
