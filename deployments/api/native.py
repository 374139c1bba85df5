"""The native API: the contract's own request, answer and errors as JSON."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from deployments.api.bodies import Bodies
from deployments.api.described_errors import KEY_REFUSALS, described
from deployments.api.disconnect import cancel_on_disconnect
from deployments.api.events import (
    EVENT_SCHEMA,
    MEDIA_TYPE,
    begun,
    event_stream,
    message,
)
from deployments.api.json_body import RecordingFields
from deployments.api.refusals import failures_logged
from deployments.contract.answer import (
    Answer,
    ErrorAnswer,
    ErrorEvent,
    Event,
    Health,
)
from deployments.contract.errors import InvalidRequestError, WhisperServeError
from deployments.contract.request import TranscriptionRequest, short, take_stream
from deployments.contract.values import number
from deployments.http_errors import REQUEST_ID_HEADER
from deployments.router.router import Router

_ERRORS = described(
    ErrorAnswer,
    {
        **KEY_REFUSALS,
        413: "the body or its file is too large",
        415: "the body is neither JSON nor a form nor audio or video: an image, compressed bytes",
        422: "the request, its URL or its audio is at fault",
        429: "the API key has too many requests waiting or in work",
        500: "the transcription failed",
        502: "the host of the audio is at fault",
        503: "the model or the service cannot start, or too many requests wait",
        504: "the request took too long",
    },
)
_HEALTH_ERRORS = described(
    ErrorAnswer,
    {
        422: "the request has a query parameter",
        500: "the service failed on this request",
    },
)

_RECORDING = RecordingFields(url="audio", base64="audio_base64")
# The fields of a form that may be repeated.
_LISTS = ("suppress_tokens", "clip_timestamps")
_FILE = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
    "description": "an audio or video file, in place of audio and audio_base64",
}
_STREAM = {
    "type": "boolean",
    "default": False,
    "description": "whether events are answered, as with Accept: text/event-stream",
}
_EVENTS = {
    "description": "The transcription, or the events on the way to it",
    "content": {
        MEDIA_TYPE: {
            "itemSchema": EVENT_SCHEMA,
            "example": message('{"event":"stage","stage":"downloading"}', "stage")
            + message('{"event":"progress","done":30.0,"total":240.0}', "progress")
            + message('{"event":"segment","segment":{"id":0}}', "segment")
            + message('{"event":"result","result":{}}', "result"),
        }
    },
}


def routes(router: Router, bodies: Bodies) -> APIRouter:
    api = APIRouter(route_class=_NativeRoute)

    @api.post(
        "/transcribe",
        response_model=Answer,
        responses=_ERRORS | {200: _EVENTS},
        openapi_extra={"requestBody": _request_body()},
    )
    async def transcribe(request: Request) -> Response:
        """Transcribe an audio or video file: by URL, inside the JSON, or uploaded in a form.

        With `Accept: text/event-stream`, or with `"stream": true` in the request, the answer is a
        stream of events.
        """
        request_id = request.headers[REQUEST_ID_HEADER]
        async with AsyncExitStack() as stack:
            with failures_logged(request):
                body = await stack.enter_async_context(
                    bodies.read(request, _RECORDING, _LISTS)
                )
                streamed = take_stream(body.fields)
            if streamed is None:
                streamed = _accepts_events(request)
            if streamed:
                # The fields are not kept in a variable: they may be large, and the work long.
                events = router.events(body.take_fields(), request_id, upload=body.file)
                # What is wrong with the request is raised here, and answered with its status.
                events = await begun(events, stack)
                return event_stream(_messages(events), stack.pop_all())
            answer = await cancel_on_disconnect(
                request.receive,
                router.answer(body.take_fields(), request_id, body.file),
            )
        # In a thread, because hours of words are megabytes of JSON.
        content = await asyncio.to_thread(answer.model_dump_json)
        return Response(content, media_type="application/json")

    @api.get("/health", response_model=Health, responses=_HEALTH_ERRORS)
    async def health(request: Request) -> dict[str, Any]:
        """Whether this application is up."""
        with failures_logged(request):
            return await router.health()

    return api


class _NativeRoute(APIRoute):
    """Refuses query parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            with failures_logged(request):
                _refuse_query(request)
            return await handle(request)

        return answer


async def _messages(events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    """The events of a stream as messages."""
    try:
        async for event in events:
            yield await _message(event)
    except WhisperServeError as error:
        yield await _message(
            ErrorEvent(error=str(error), type=error.type, status=error.status)
        )


async def _message(event: Event | ErrorEvent) -> str:
    # In a thread, because hours of words are megabytes of JSON.
    return message(await asyncio.to_thread(event.model_dump_json), event.event)


def _accepts_events(request: Request) -> bool:
    """Whether the caller names event streams, and names no JSON that it likes better."""
    wish: dict[str, float] = {}
    for media_range in request.headers.get("accept", "").lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        weights = [number(p[2:]) for p in parameters if p.startswith("q=")]
        wish[name] = weights[0] if weights and isinstance(weights[0], float) else 1.0
    return wish.get(MEDIA_TYPE, 0.0) > wish.get("application/json", 0.0)


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
    return {
        "required": True,
        "content": {
            "application/json": {"schema": _schema(), "example": example},
            "multipart/form-data": {"schema": _schema(file=_FILE)},
        },
    }


def _schema(**first: dict[str, Any]) -> dict[str, Any]:
    """The schema of a request of HTTP, which has fields of its own beside the contract's."""
    schema = TranscriptionRequest.model_json_schema()
    schema["properties"] = {**first, **schema["properties"], "stream": _STREAM}
    return schema
