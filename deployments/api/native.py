"""The native API: the contract's own request, answer and errors as JSON."""

import asyncio
import base64
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from deployments.api.bodies import Bodies
from deployments.contract.answer import Answer, ErrorAnswer, Health
from deployments.contract.errors import InvalidRequestError, WhisperServeError
from deployments.contract.request import TranscriptionRequest, short
from deployments.http_errors import contract_response
from deployments.router.request_log import logged_request
from deployments.router.router import Router

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        413: "the body or its file is too large",
        415: "the body is neither JSON nor a form nor audio or video: an image, compressed bytes",
        422: "the request, its URL or its audio is at fault",
        500: "the transcription failed",
        502: "the host of the audio is at fault",
        503: "the model or the service cannot start, or too many requests wait",
        504: "the request took too long",
    }.items()
}

# The fields of a form that may be repeated.
_LISTS = ("suppress_tokens", "clip_timestamps")
_FILE = {
    "type": "string",
    "format": "binary",
    "description": "an audio or video file, in place of audio and audio_base64",
}


def routes(router: Router, bodies: Bodies) -> APIRouter:
    api = APIRouter(route_class=_NativeRoute)

    @api.post(
        "/transcribe",
        response_model=Answer,
        responses=_ERRORS,
        openapi_extra={"requestBody": _request_body()},
    )
    async def transcribe(request: Request) -> Response:
        """Transcribe an audio or video file: by URL, inside the JSON, or uploaded in a form."""
        request_id = _request_id(request)
        async with AsyncExitStack() as stack:
            with _failures_logged(request):
                body = await stack.enter_async_context(bodies.read(request, _LISTS))
            # The fields are not kept in a variable: they may be large, and the work long.
            answer = await router.answer(body.take_fields(), request_id, body.file)
        # In a thread, because hours of words are megabytes of JSON.
        content = await asyncio.to_thread(answer.model_dump_json)
        return Response(content, media_type="application/json")

    @api.get("/health", response_model=Health)
    async def health(request: Request) -> dict[str, Any]:
        """Whether this application is up."""
        with _failures_logged(request):
            return await router.health()

    return api


class _NativeRoute(APIRoute):
    """Refuses query parameters, and answers the contract's errors in the native form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                with _failures_logged(request):
                    _refuse_query(request)
                return await handle(request)
            except WhisperServeError as error:
                return contract_response(error)

        return answer


def _request_id(request: Request) -> str | None:
    # Serve's proxy gives every request this header and repeats it in the answer.
    return request.headers.get("x-request-id")


@contextmanager
def _failures_logged(request: Request) -> Iterator[None]:
    """Log what fails here. The Router logs the requests that reach it."""
    with logged_request(_request_id(request), successes=False):
        yield


def _refuse_query(request: Request) -> None:
    for name in request.query_params:
        instead = "leave it out"
        if request.method == "POST":
            instead = "the request's fields go into the body"
        raise InvalidRequestError(
            f"Unknown query parameter: '{short(name)}'. This API takes none: {instead}"
        )


def _request_body() -> dict[str, Any]:
    # The example holds its audio, so that it runs on every machine: "And so, my fellow Americans",
    # John F. Kennedy, 1961, public domain.
    audio = (Path(__file__).parent / "example.ogg").read_bytes()
    example = {
        "audio_base64": base64.b64encode(audio).decode(),
        "word_timestamps": True,
    }
    schema = TranscriptionRequest.model_json_schema()
    form = TranscriptionRequest.model_json_schema()
    form["properties"] = {"file": _FILE, **form["properties"]}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": schema, "example": example},
            "multipart/form-data": {"schema": form},
        },
    }
