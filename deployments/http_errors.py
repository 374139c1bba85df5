"""Errors over HTTP: `{"error": text, "type": kind}`, and as OpenAI writes them."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from deployments.contract.answer import ErrorAnswer
from deployments.contract.errors import WhisperServeError

# Headers of answers, beside `Retry-After`.
REQUEST_ID_HEADER = "x-request-id"
SHOULD_RETRY_HEADER = "x-should-retry"
WARNINGS_HEADER = "x-whisper-warnings"


def error_response(
    status: int, text: str, kind: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error that is not one of the contract's tree, as of an unknown path."""
    body = ErrorAnswer(error=text, type=kind)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def contract_response(
    error: WhisperServeError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error of the contract, with `Retry-After` where a later request may succeed."""
    known = dict(headers or {})
    if error.retry_after_s is not None:
        known.setdefault("Retry-After", str(error.retry_after_s))
    return error_response(error.status, str(error), error.type, known)


def openai_error(
    status: int, text: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error as OpenAI writes it.

    code: machine-readable
    param: the field that is at fault, if one is

    https://platform.openai.com/docs/guides/error-codes
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def openai_headers(retry_after: str | None) -> dict[str, str]:
    """Headers that tell OpenAI's SDKs whether to send a request again, and after how many seconds.

    Without them, an SDK would send a request three times that fails in the same way each time.
    """
    if retry_after is None:
        return {SHOULD_RETRY_HEADER: "false"}
    return {SHOULD_RETRY_HEADER: "true", "Retry-After": retry_after}


def in_openai_form(native: Response) -> JSONResponse:
    """An error of `error_response` or `contract_response` as OpenAI writes it."""
    error = json.loads(bytes(native.body))
    return JSONResponse(
        openai_error(native.status_code, error["error"], error["type"]),
        native.status_code,
        openai_headers(native.headers.get("retry-after")),
    )
