"""The native API: the contract's own request, answer and errors as JSON."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from deployments.api.errors import error_response
from deployments.contract.answer import Answer, ErrorAnswer, Health, ServedModel
from deployments.contract.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    WhisperServeError,
)
from deployments.contract.inline_audio import MAX_INLINE_AUDIO_BYTES
from deployments.contract.request import TranscriptionRequest
from deployments.router.router import Router

# Base64 takes four bytes for three; the rest of a request is small.
MAX_BODY_BYTES = MAX_INLINE_AUDIO_BYTES // 3 * 4 + (4 << 20)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        413: "the body is too large",
        422: "the request, its URL or its audio is at fault",
        500: "the transcription failed",
        502: "the host of the audio is at fault",
        503: "the model cannot start, or too many requests wait",
        504: "the request took too long",
    }.items()
}


def routes(router: Router) -> APIRouter:
    api = APIRouter(route_class=_NativeRoute)

    @api.post(
        "/transcribe",
        response_model=Answer,
        responses=_ERRORS,
        openapi_extra={"requestBody": _request_body()},
    )
    async def transcribe(request: Request) -> Response:
        """Transcribe an audio or video file, given by URL or inside the request."""
        # Serve's proxy gives every request this header and repeats it in the answer.
        request_id = request.headers.get("x-request-id")
        # Not kept in a variable: the body may be large, and the transcription long.
        answer = await router.answer(await _read_json(request), request_id)
        # In a thread, because hours of words are megabytes of JSON.
        content = await asyncio.to_thread(answer.model_dump_json)
        return Response(content, media_type="application/json")

    @api.get("/models", response_model=list[ServedModel])
    async def models() -> list[dict[str, Any]]:
        """The served models: cached weights, running replicas, and the use of their slots."""
        return await router.models()

    @api.get("/health", response_model=Health)
    async def health() -> dict[str, Any]:
        """Whether this application is up."""
        return await router.health()

    return api


class _NativeRoute(APIRoute):
    """Answers the contract's errors in the native form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except WhisperServeError as error:
                return error_response(error.status, str(error), error.type)

        return answer


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


def _request_body() -> dict[str, Any]:
    # The example holds its audio, so that it runs on every machine: "And so, my fellow Americans",
    # John F. Kennedy, 1961, public domain.
    audio = (Path(__file__).parent / "example.ogg").read_bytes()
    example = {
        "audio_base64": base64.b64encode(audio).decode(),
        "word_timestamps": True,
    }
    schema = TranscriptionRequest.model_json_schema()
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": example}},
    }
