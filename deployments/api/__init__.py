"""The HTTP door. `build` makes one FastAPI application of the routes of every API."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api import native
from deployments.contract.answer import ErrorAnswer
from deployments.contract.errors import WhisperServeError
from deployments.router.router import Router


def build(router: Router) -> FastAPI:
    """The routes over a router's methods.

    A failure outside any API's own routes, as of an unknown path, is answered in the native form.
    """
    app = FastAPI(
        title="Whisper",
        summary="OpenAI's Whisper: audio in; segments, words, language and text out.",
    )
    app.include_router(native.routes(router))

    @app.exception_handler(HTTPException)
    async def answer_http_error(_: Request, error: HTTPException) -> JSONResponse:
        kind = error.detail.lower().replace(" ", "_")
        return _error(error.status_code, error.detail, kind)

    @app.exception_handler(Exception)
    async def answer_unforeseen(_: Request, error: Exception) -> JSONResponse:
        return _error(500, "Internal error; the log names it", WhisperServeError.type)

    return app


def _error(status: int, text: str, kind: str) -> JSONResponse:
    answer = ErrorAnswer(error=text, type=kind)
    return JSONResponse(answer.model_dump(), status_code=status)
