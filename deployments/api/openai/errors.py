"""Errors as OpenAI writes them: `{"error": {"message", "type", "param", "code"}}`.

https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from typing import Any

from deployments.contract.errors import (
    AudioUrlError,
    InvalidAudioError,
    InvalidRequestError,
    WhisperServeError,
)
from deployments.http_errors import openai_error, openai_headers, retry_headers

# OpenAI has no 422: its clients know a wrong request by 400.
_STATUSES = {422: 400}
_CODES = {"invalid_request": "invalid_value"}


class UnknownModelError(InvalidRequestError):
    """No served model has the name, and OpenAI has none for transcriptions."""

    status = 404
    type = "model_not_found"


class UnsupportedValueError(InvalidRequestError):
    """OpenAI knows the value, and it is not offered here."""

    status = 400
    type = "unsupported_value"


def renamed(
    error: InvalidRequestError, names: Mapping[str, str]
) -> InvalidRequestError:
    """The error, whose text begins with the client's own name for the field that is at fault.

    names: see `AnswerOptions.names`
    """
    known = error.field
    if known is None or names.get(known, known) == known:
        return error
    return type(error)(str(error).replace(known, names[known], 1))


def status_of(error: WhisperServeError) -> int:
    return _STATUSES.get(error.status, error.status)


def body_of(
    error: WhisperServeError, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The body of an error.

    names: see `AnswerOptions.names`
    """
    names = names or {}
    param, code = None, _CODES.get(error.type, error.type)
    if isinstance(error, InvalidRequestError):
        error = renamed(error, names)
        param = error.field
        if str(error).startswith("Missing"):
            code = "missing_required_parameter"
    elif isinstance(error, AudioUrlError | InvalidAudioError):
        param = names.get("audio")
    return openai_error(status_of(error), str(error), code, param).model_dump()


def headers_of(error: WhisperServeError) -> dict[str, str]:
    """Errors that may pass have Retry-After; all others tell SDKs not to retry."""
    return openai_headers(retry_headers(error).get("Retry-After"))
