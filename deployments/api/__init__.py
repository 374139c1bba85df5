"""The HTTP door. `build` makes one FastAPI application of the routes of every API."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api import native
from deployments.api.errors import error_response
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
        return error_response(error.status_code, error.detail, kind)

    @app.exception_handler(Exception)
    async def answer_unforeseen(_: Request, error: Exception) -> JSONResponse:
        return error_response(
            500, "Internal error; the log names it", WhisperServeError.type
        )

    return app
