"""The routes of OpenAI's audio API."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from deployments.api.bodies import Bodies
from deployments.api.disconnect import cancel_on_disconnect
from deployments.api.events import event_stream
from deployments.api.openai import errors, schema, stream
from deployments.api.openai.answer_options import AnswerOptions, Task
from deployments.api.openai.models import Model, ModelList, model_list, one_model
from deployments.api.openai.request import log_ignored, parse
from deployments.api.openai.response import answer_response
from deployments.contract.answer import Event
from deployments.contract.errors import WhisperServeError
from deployments.http_errors import openai_error, openai_headers
from deployments.router.request_log import logged_request, valid_request_id
from deployments.router.router import Router

_REQUEST_ID = "x-request-id"
# Some clients have the base URL without `/v1`.
_PREFIXES = ("/v1", "")
# A failure within this time still has its own status and `Retry-After`, which SDKs obey; a later
# one is told inside the stream.
_EARLY_S = 0.5


def routes(router: Router, bodies: Bodies, early_s: float = _EARLY_S) -> APIRouter:
    """The routes, each also without `/v1`.

    early_s: how long a stream is held back, in case that the work fails at once
    """
    api = APIRouter(route_class=_OpenAIRoute)

    async def answered(request: Request, task: Task) -> Response:
        request_id = request.state.request_id
        async with AsyncExitStack() as stack:
            with _failures_logged(request):
                body = await stack.enter_async_context(bodies.read(request))
                has_file = body.file is not None
                parsed = await asyncio.to_thread(
                    parse, body.take_fields(), task, router.args, has_file
                )
            options = parsed.options
            log_ignored(options, request_id)
            # The request is not kept in a variable: it may be large, and the work long.
            if options.stream:
                events = router.events(
                    parsed.request, request_id, progress=False, upload=body.file
                )
                del parsed
                return await _streamed(events, options, stack.pop_all(), early_s)
            answering = router.answer(parsed.request, request_id, body.file)
            del parsed
            try:
                answer = await cancel_on_disconnect(request.receive, answering)
            except WhisperServeError as error:
                return _error_response(error, options.names)
        # In a thread, because hours of words are megabytes of text.
        return await asyncio.to_thread(answer_response, answer, options)

    async def transcribe(request: Request) -> Response:
        """Transcribe an audio or video file in its own language."""
        return await answered(request, "transcribe")

    async def translate(request: Request) -> Response:
        """Transcribe an audio or video file in English."""
        return await answered(request, "translate")

    async def models(request: Request) -> ModelList:
        """Every model name that a request may use, and what runs of the model behind it."""
        with _failures_logged(request):
            return model_list(await router.models(), router.args)

    async def model(request: Request, name: str) -> Model:
        """One model, by any name that a request may use."""
        with _failures_logged(request):
            return one_model(await router.models(), router.args, name)

    for prefix in _PREFIXES:
        shown = prefix == _PREFIXES[0]
        for name, task in (("transcriptions", transcribe), ("translations", translate)):
            api.add_api_route(
                f"{prefix}/audio/{name}",
                task,
                methods=["POST"],
                include_in_schema=shown,
                responses=schema.TRANSCRIPTION_ANSWERS,
                openapi_extra={"requestBody": schema.request_body()},
                response_class=Response,
            )
        api.add_api_route(f"{prefix}/models", models, response_model=ModelList)
        api.add_api_route(
            f"{prefix}/models/{{name:path}}",
            model,
            response_model=Model,
            responses=schema.UNKNOWN_MODEL,
            include_in_schema=shown,
        )
    return api


def serves(path: str) -> bool:
    """Whether a path, below the application's own prefix, is one where OpenAI's clients ask."""
    parts = path.strip("/").split("/")
    return parts[0] in ("v1", "audio", "models")


def framework_error(
    request: Request,
    request_id: str,
    status: int,
    text: str,
    code: str,
    headers: dict[str, str],
) -> JSONResponse:
    """The answer to a request that reached no route, as for an unknown path."""
    response = JSONResponse(
        openai_error(status, text, code), status, headers | openai_headers(None)
    )
    _add_request_id(request, response, request_id)
    return response


class _OpenAIRoute(APIRoute):
    """Gives each request an id, and answers the contract's errors as OpenAI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            request_id = valid_request_id(request.headers.get(_REQUEST_ID))
            request.state.request_id = request_id
            try:
                response = await handle(request)
            except WhisperServeError as error:
                response = _error_response(error, {})
            _add_request_id(request, response, request_id)
            return response

        return answer


def _add_request_id(request: Request, response: Response, request_id: str) -> None:
    # Serve's proxy gives every request this header and adds it to the answer by itself.
    if _REQUEST_ID not in request.headers:
        response.headers[_REQUEST_ID] = request_id


def _error_response(error: WhisperServeError, names: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(
        errors.body_of(error, names),
        status_code=errors.status_of(error),
        headers=errors.headers_of(error),
    )


@contextmanager
def _failures_logged(request: Request) -> Iterator[None]:
    """Log what fails here. The Router logs the requests that reach it."""
    with logged_request(request.state.request_id, successes=False):
        yield


async def _streamed(
    events: AsyncGenerator[Event, None],
    options: AnswerOptions,
    resources: AsyncExitStack,
    early_s: float,
) -> Response:
    """A stream of the events; an error response where they fail early.

    resources: what is closed at the end of the stream
    """
    begun = _begun(events, resources, early_s)
    try:
        # Runs to the first yield, so that the generator is closed even where nobody reads it.
        await anext(begun)
    except WhisperServeError as error:
        return _error_response(error, options.names)
    return event_stream(stream.messages(begun, options))


async def _begun(
    events: AsyncGenerator[Event, None], resources: AsyncExitStack, early_s: float
) -> AsyncGenerator[Event | None, None]:
    """The events, after None that says that they do not fail early."""
    async with resources, aclosing(events):
        first = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait({first}, timeout=early_s)
            if first.done():
                first.result()
            yield None
            yield await first
        finally:
            first.cancel()
            # Its error, if there is one, has been raised or is nobody's any more.
            await asyncio.gather(first, return_exceptions=True)
        async for event in events:
            yield event
