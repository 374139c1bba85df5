"""The HTTP door: FastAPI routes over the Router's methods."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from starlette.exceptions import HTTPException

from deployments.contract.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    WhisperServeError,
)
from deployments.contract.schema import (
    MAX_BASE64_AUDIO_BYTES,
    ErrorResponse,
    TranscriptionRequest,
    TranscriptionResponse,
)
from deployments.router.router import Router

# Base64 takes four bytes for three; the rest of a request is small.
MAX_BODY_BYTES = MAX_BASE64_AUDIO_BYTES // 3 * 4 + (4 << 20)

# Inside the request, so that the example in the API docs runs on every machine: "And so, my fellow Americans",
# John F. Kennedy, 1961, public domain.
_EXAMPLE_AUDIO = base64.b64encode(
    (Path(__file__).parent / "example.ogg").read_bytes()
).decode()

_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": TranscriptionRequest.model_json_schema(),
            "example": {"audio_base64": _EXAMPLE_AUDIO, "word_timestamps": True},
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        413: "the body is too large",
        422: "the request, its URL or its audio is at fault",
        500: "the transcription failed",
        502: "the host of the audio is at fault",
        503: "the model cannot start, or too many requests wait",
        504: "the request took too long",
    }.items()
}


def build() -> FastAPI:
    """The routes. Serve calls this in the replica, so nothing of it has to pickle."""
    app = FastAPI(
        title="Whisper",
        summary="OpenAI's Whisper: audio in; segments, words, language and text out.",
    )

    @app.post(
        "/transcribe",
        response_model=TranscriptionResponse,
        responses=_ERRORS,
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def transcribe(request: Request) -> JSONResponse:
        """Transcribe an audio or video file, given by URL or inside the request."""
        # Serve's proxy gives every request this header and repeats it in the answer.
        request_id = request.headers.get("x-request-id")
        # Not kept in a variable: it may be large, and the transcription long.
        answer = await _router().transcribe(await _read_json(request), request_id)
        # Hours of words are megabytes of JSON.
        return await asyncio.to_thread(JSONResponse, answer)

    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        """The served models, whether their weights are at hand, whether a replica is up, and its slots in use."""
        return await _router().models()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether this application is up."""
        return await _router().health()

    @app.exception_handler(WhisperServeError)
    async def answer_error(_: Request, error: WhisperServeError) -> JSONResponse:
        return _error(error.status, str(error), error.type)

    @app.exception_handler(HTTPException)
    async def answer_http_error(_: Request, error: HTTPException) -> JSONResponse:
        kind = error.detail.lower().replace(" ", "_")
        return _error(error.status_code, error.detail, kind)

    @app.exception_handler(Exception)
    async def answer_unforeseen(_: Request, error: Exception) -> JSONResponse:
        return _error(500, "Internal error; the log names it", WhisperServeError.type)

    return app


def _router() -> Router:
    return cast(Router, serve.get_replica_context().servable_object)


async def _read_json(request: Request) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLargeError(
                f"The request body is larger than {MAX_BODY_BYTES >> 20} MiB"
            )
    try:
        return await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("The request body is not valid JSON") from None


def _error(status: int, text: str, kind: str) -> JSONResponse:
    answer = ErrorResponse(error=text, type=kind)
    return JSONResponse(answer.model_dump(), status_code=status)
