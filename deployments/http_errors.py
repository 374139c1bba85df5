"""Errors over HTTP: `{"error": text, "type": kind}`, and OpenAI's form on OpenAI's paths."""

import re
from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import Scope

from deployments.contract.answer import ErrorAnswer
from deployments.contract.errors import WhisperServeError

# Headers of answers, beside `Retry-After`.
REQUEST_ID_HEADER = "x-request-id"
SHOULD_RETRY_HEADER = "x-should-retry"
WARNINGS_HEADER = "x-whisper-warnings"
# Which of them the page of an allowed origin may read.
READABLE_HEADERS = (
    REQUEST_ID_HEADER,
    "retry-after",
    SHOULD_RETRY_HEADER,
    WARNINGS_HEADER,
)

# The native `/transcribe` keeps its form also below a prefix such as `/audio`.
_OPENAI_PATH = re.compile(r"/(?:v1|audio|models)(?:/(?!transcribe/?$)|$)")


class ErrorObject(BaseModel):
    """What went wrong.

    param: the field that is at fault, if one is
    code: machine-readable
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error, as OpenAI writes it."""

    error: ErrorObject


def route_of(scope: Scope) -> str:
    """The path below the prefix, as Starlette's router reads it."""
    path: str = scope.get("path", "")
    prefix: str = scope.get("root_path", "")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def is_openai_path(path: str) -> bool:
    """Whether clients of OpenAI's API ask there.

    path: whole, because Serve's proxy does not know the prefix of the application
    """
    return _OPENAI_PATH.search(path) is not None


def error_response(
    path: str,
    status: int,
    text: str,
    kind: str,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in the form of the API that was called.

    path: of the request
    kind: machine-readable, of the native form
    headers: `Retry-After` among them, where a later request may succeed
    code: machine-readable, of OpenAI's form; None: the kind
    """
    headers = dict(headers or {})
    if is_openai_path(path):
        body = openai_error(status, text, code or kind)
        headers |= openai_headers(headers.get("Retry-After"))
        return JSONResponse(body.model_dump(), status, headers)
    native = ErrorAnswer(error=text, type=kind)
    return JSONResponse(native.model_dump(), status, headers)


def retry_headers(error: WhisperServeError) -> dict[str, str]:
    """`Retry-After` where a later request may succeed."""
    seconds = error.retry_after_s
    return {} if seconds is None else {"Retry-After": str(seconds)}


def openai_error(
    status: int, text: str, code: str | None, param: str | None = None
) -> ErrorBody:
    """The body of an error as OpenAI writes it.

    code: machine-readable
    param: the field that is at fault, if one is

    https://platform.openai.com/docs/guides/error-codes
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        # OpenAI names the limit as the type: requests or tokens.
        kind, code = "requests", "rate_limit_exceeded"
    return ErrorBody(error=ErrorObject(message=text, type=kind, param=param, code=code))


def openai_headers(retry_after: str | None) -> dict[str, str]:
    """Headers that tell OpenAI's SDKs whether to send a request again, and after how many seconds.

    Without them, an SDK would send a request three times that fails in the same way each time.
    """
    if retry_after is None:
        return {SHOULD_RETRY_HEADER: "false"}
    return {SHOULD_RETRY_HEADER: "true", "Retry-After": retry_after}
