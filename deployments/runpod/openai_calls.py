"""Jobs that hold a call of OpenAI's API, as RunPod makes of requests to `.../openai/v1/...`.

Such a job's input is `{"openai_route": "/v1/audio/transcriptions", "openai_input": {...}}`, where
`openai_input` is the JSON that a client sent. A GET request has none. RunPod passes on no forms.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from deployments.api.openai import errors, stream
from deployments.api.openai.answer import content
from deployments.api.openai.answer_options import AnswerOptions, Task
from deployments.api.openai.models import model_list, one_model
from deployments.api.openai.request import OpenAIRequest, log_ignored, parse
from deployments.config import AppArgs
from deployments.contract.answer import Answer, Event
from deployments.contract.errors import InvalidRequestError, WhisperServeError
from deployments.contract.request import short
from deployments.router.result import answer_of
from deployments.runpod.job_api import JobApi
from deployments.runpod.reports import Reports
from deployments.runpod.result_size import fit_openai_to_limit
from deployments.runpod.settings import Settings

_ROUTE, _FIELDS = "openai_route", "openai_input"
_TASKS: dict[str, Task] = {
    "audio/transcriptions": "transcribe",
    "audio/translations": "translate",
}
_MODELS = "models"
_OFFERED = ", ".join(f"/v1/{route}" for route in (*_TASKS, _MODELS, f"{_MODELS}/ID"))

# By job id, request of the contract, and whether segments are wanted.
Events = Callable[[str, dict[str, Any], bool], AsyncGenerator[Event, None]]
ListModels = Callable[[], Any]


def is_call(job_input: Any) -> bool:
    return isinstance(job_input, dict) and _ROUTE in job_input


class OpenAICalls:
    """Answers jobs that hold a call of OpenAI's API.

    events: of the Router, for a request of the contract
    models: `Router.models`
    api: where progress and streams are posted; None: nowhere
    """

    def __init__(
        self,
        events: Events,
        models: ListModels,
        settings: Settings,
        args: AppArgs,
        api: JobApi | None,
    ) -> None:
        self._events = events
        self._models = models
        self._settings = settings
        self._args = args
        self._api = api

    async def result_of(self, job_id: str, job_input: dict[str, Any]) -> Any:
        """What OpenAI's API answers: an object, or the text where the format is one of text.

        With `stream`, the messages of OpenAI's stream go to the job's stream as text.

        Raises WhisperServeError, whose text names fields as the client did.
        """
        route = _route_of(job_input)
        if route not in _TASKS:
            return await self._describe_models(route)
        parsed = await asyncio.to_thread(self._parse, job_input, _TASKS[route])
        options = parsed.options
        log_ignored(options, job_id)
        events = self._events(job_id, parsed.request, options.stream)
        reports = Reports(self._api, job_id)
        try:
            async with reports.posted():
                if options.stream:
                    answer = await _streamed(events, options, reports)
                else:
                    answer = await answer_of(events, reports.on_event)
        except WhisperServeError as error:
            raise WhisperServeError(_text_of(error, options)) from None
        return await asyncio.to_thread(self._rendered, answer, options)

    def _parse(self, job_input: dict[str, Any], task: Task) -> OpenAIRequest:
        if not job_input.get(_FIELDS):
            raise InvalidRequestError(
                f"Missing required parameter: '{_FIELDS}' (the request's JSON object)"
            )
        parsed = parse(job_input[_FIELDS], task, self._args, has_file=False)
        # The format says whether words are wanted, so that the worker's default does not count.
        request = {"word_timestamps": False} | parsed.request
        request = self._settings.with_defaults(request, self._args)
        return OpenAIRequest(request, parsed.options)

    def _rendered(self, answer: Answer, options: AnswerOptions) -> Any:
        output = content(answer, options)
        return fit_openai_to_limit(output, self._settings.max_result_bytes)

    async def _describe_models(self, route: str) -> dict[str, Any]:
        kind, _, name = route.partition("/")
        if kind != _MODELS:
            raise InvalidRequestError(
                f"Invalid {_ROUTE}: '{short(route)}' is not offered. Offered are {_OFFERED}"
            )
        served = await self._models()
        if name:
            return one_model(served, self._args, name).model_dump()
        return model_list(served, self._args).model_dump()


def _route_of(job_input: dict[str, Any]) -> str:
    """The route without `/v1`, as in the paths of HTTP."""
    route = job_input[_ROUTE]
    if not isinstance(route, str):
        raise InvalidRequestError(f"Invalid {_ROUTE}: must be a string")
    return route.partition("?")[0].strip().strip("/").removeprefix("v1/")


async def _streamed(
    events: AsyncGenerator[Event, None], options: AnswerOptions, reports: Reports
) -> Answer:
    """The answer, after the stream's messages; an error is the last of these, and is raised."""
    messages = stream.Messages(options)

    async def on_event(event: Event) -> None:
        reports.add(event)
        for text in await messages.of(event):
            reports.add_text(text)

    try:
        return await answer_of(events, on_event)
    except WhisperServeError as error:
        reports.add_text(messages.of_error(error))
        raise


def _text_of(error: WhisperServeError, options: AnswerOptions) -> str:
    message: str = errors.body_of(error, options.names)["error"]["message"]
    return message
