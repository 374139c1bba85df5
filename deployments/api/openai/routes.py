"""The routes of OpenAI's audio API."""

import asyncio
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request, Response

from deployments.api.bodies import Bodies
from deployments.api.disconnect import cancel_on_disconnect
from deployments.api.events import begun, event_stream
from deployments.api.json_body import RecordingFields
from deployments.api.openai import schema, stream
from deployments.api.openai.answer_options import Task
from deployments.api.openai.models import Model, ModelList, model_list, one_model
from deployments.api.openai.request import log_ignored, parse
from deployments.api.openai.response import answer_response
from deployments.api.refusals import contract_response, failures_logged
from deployments.contract.errors import WhisperServeError
from deployments.http_errors import REQUEST_ID_HEADER
from deployments.router.router import Router

_RECORDING = RecordingFields(url="url", base64="file")
# Some clients have the base URL without `/v1`.
_PREFIXES = ("/v1", "")
# A failure within this time still has its own status and `Retry-After`, which SDKs obey; a later
# one is told inside the stream.
_EARLY_S = 0.5


def routes(router: Router, bodies: Bodies) -> APIRouter:
    """The routes, each also without `/v1`."""
    api = APIRouter(responses=schema.EVERY_ROUTE)

    async def answered(request: Request, task: Task) -> Response:
        request_id = request.headers[REQUEST_ID_HEADER]
        async with AsyncExitStack() as stack:
            with failures_logged(request):
                body = await stack.enter_async_context(bodies.read(request, _RECORDING))
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
                try:
                    events = await begun(events, stack, _EARLY_S)
                except WhisperServeError as error:
                    return contract_response(request.scope, error, options.names)
                messages = stream.messages(events, options)
                return event_stream(messages, stack.pop_all())
            answering = router.answer(parsed.request, request_id, body.file)
            del parsed
            try:
                answer = await cancel_on_disconnect(request.receive, answering)
            except WhisperServeError as error:
                return contract_response(request.scope, error, options.names)
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
        with failures_logged(request):
            return model_list(await router.models(), router.args)

    async def model(request: Request) -> Model:
        """One model, by any name that a request may use."""
        name = request.path_params["name"]
        with failures_logged(request):
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
            openapi_extra={"parameters": schema.MODEL_NAME},
            include_in_schema=shown,
        )
    return api
