"""Requests that the HTTP door answers with an error by itself, each with one line of the log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.openai import errors
from deployments.contract.errors import WhisperServeError
from deployments.http_errors import (
    REQUEST_ID_HEADER,
    error_response,
    is_openai_path,
    retry_headers,
)
from deployments.logs import error_location
from deployments.router.request_log import log_refusal, logged_request

_UNFORESEEN_ANSWERED = "whisper_serve.unforeseen_answered"


def refusal(
    scope: Scope,
    status: int,
    text: str,
    kind: str,
    *,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    reason: str | None = None,
) -> JSONResponse:
    """The answer to a request that is refused, in the form of the API that was called; logs it.

    kind, headers, code: see `error_response`
    reason: for the log; None: the kind
    """
    request_id = Headers(scope=scope).get(REQUEST_ID_HEADER)
    log_refusal(request_id, status, reason or kind)
    return error_response(scope["path"], status, text, kind, headers, code)


def contract_response(
    scope: Scope, error: WhisperServeError, names: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error of the contract, in the form of the API that was called.

    names: see `AnswerOptions.names`
    """
    path = scope["path"]
    if is_openai_path(path):
        return JSONResponse(
            errors.body_of(error, names),
            errors.status_of(error),
            errors.headers_of(error),
        )
    headers = retry_headers(error)
    return error_response(path, error.status, str(error), error.type, headers)


def unforeseen(request: Request, error: Exception) -> JSONResponse:
    """The answer to an error that is none of the contract's; logs its kind and place."""
    request.scope[_UNFORESEEN_ANSWERED] = True
    answered = WhisperServeError("Internal error; the log names it")
    reason = f"{type(error).__name__}@{error_location(error)}"
    return refusal(
        request.scope, answered.status, str(answered), answered.type, reason=reason
    )


class EndAnsweredErrors:
    """ASGI middleware where an error ends that `unforeseen` has answered.

    Starlette raises them once more after the answer, and a server would log their text and
    traceback, which may hold data of a caller.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            if _UNFORESEEN_ANSWERED not in scope:
                raise


@contextmanager
def failures_logged(request: Request) -> Iterator[None]:
    """Log what fails here. The Router logs the requests that reach it."""
    request_id = request.headers.get(REQUEST_ID_HEADER)
    with logged_request(request_id, successes=False):
        yield
