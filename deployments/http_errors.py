"""Errors over HTTP: `{"error": text, "type": kind}`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from deployments.contract.answer import ErrorAnswer
from deployments.contract.errors import WhisperServeError


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
