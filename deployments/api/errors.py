"""The native form of an error."""

from fastapi.responses import JSONResponse

from deployments.contract.answer import ErrorAnswer


def error_response(status: int, text: str, kind: str) -> JSONResponse:
    """An answer of `{"error": text, "type": kind}`."""
    body = ErrorAnswer(error=text, type=kind)
    return JSONResponse(body.model_dump(), status_code=status)
