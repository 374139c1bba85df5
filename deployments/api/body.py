"""The JSON of an HTTP request."""

import asyncio
import json
import re
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from deployments.contract.errors import (
    InvalidRequestError,
    RequestCancelledError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
    WhisperServeError,
)
from deployments.contract.inline_audio import MAX_INLINE_AUDIO_BYTES
from deployments.contract.request import short

# Base64 takes four bytes for three; the rest of a request is small.
MAX_BODY_BYTES = MAX_INLINE_AUDIO_BYTES // 3 * 4 + (4 << 20)

_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
# Such a body is refused before it is read, because a large one would be refused for its size.
_NEVER_JSON = ("multipart/", "audio/", "video/", "image/")
_WHAT_TO_SEND = (
    "send a JSON object with Content-Type: application/json, and in it the file's URL as"
    " 'audio' or the file as 'audio_base64'"
)


async def read_json(request: Request) -> Any:
    """The value in the request's body.

    JSON is read whatever content type comes with it: `curl -d` calls it form data.

    Raises UnsupportedMediaTypeError for a body that is something else and says so,
    RequestTooLargeError, RequestCancelledError if the caller leaves, and InvalidRequestError.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"The request body's Content-Encoding is '{short(encoding)}':"
            " send the JSON uncompressed and leave that header out"
        )
    media_type = _media_type(request)
    if media_type.startswith(_NEVER_JSON):
        raise UnsupportedMediaTypeError(
            f"The request body is {short(media_type)}: {_WHAT_TO_SEND}"
        )
    body = await _read(request)
    try:
        return await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        place = _place(error)
    # Outside the except block, because its error holds the whole text.
    raise _refusal(body, media_type, place)


def _media_type(request: Request) -> str:
    """Such as `text/plain`; empty where the header is absent or is no media type."""
    header = request.headers.get("content-type", "")
    media_type = header.partition(";")[0].strip().lower()
    return media_type if _MEDIA_TYPE.fullmatch(media_type) else ""


async def _read(request: Request) -> bytearray:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise RequestTooLargeError(
                    f"The request body is larger than {MAX_BODY_BYTES >> 20} MiB:"
                    " give a large file's URL as 'audio'"
                )
    except ClientDisconnect:
        raise RequestCancelledError("The caller left") from None
    return body


def _refusal(body: bytearray, media_type: str, place: str) -> WhisperServeError:
    """What is said of a body that is no JSON: where it breaks off being JSON, or what it is."""
    start = bytes(body[:100]).lstrip()
    if not start and len(body) < 100:
        return InvalidRequestError(f"The request body is empty: {_WHAT_TO_SEND}")
    is_json = not media_type or media_type.endswith(("/json", "+json"))
    if is_json or start.startswith((b"{", b"[")):
        return InvalidRequestError(f"The request body is not valid JSON: {place}")
    return UnsupportedMediaTypeError(
        f"The request body is {short(media_type)} and not JSON: {_WHAT_TO_SEND}"
    )


def _place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "too deeply nested" if isinstance(error, RecursionError) else "no UTF-8"
