"""From a RunPod job to the Router and back: the contract's third door.

A job's result is the contract's answer or `{"error": "<short text>"}`. Where the job holds a call
of OpenAI's API, the result is what that API answers. The handler never raises, because RunPod's
SDK would post the traceback.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.config import AppArgs
from deployments.contract.answer import Event
from deployments.contract.errors import InvalidRequestError, WhisperServeError
from deployments.contract.request import take_stream, unwrapped
from deployments.logs import error_location
from deployments.router.result import answer_of
from deployments.router.retry import (
    ReplicaLostError,
    ray_errors_translated,
    retried_once,
)
from deployments.runpod.job import INTERNAL_ERROR, Job
from deployments.runpod.job_api import JobApi
from deployments.runpod.openai_calls import OpenAICalls, is_call
from deployments.runpod.reports import Reports
from deployments.runpod.result_size import fit_to_limit
from deployments.runpod.settings import Settings

logger = logging.getLogger(__name__)

_SERVICE_DIED = "The worker's service has died during this job: send the job again"
_JOB_LOST = "The service lost this job while it restarted: send it again"


class JobHandler:
    """Does jobs, any number at the same time.

    router: the application's handle
    api: where progress and streams are posted; None: nowhere
    """

    def __init__(
        self,
        router: DeploymentHandle[Any],
        settings: Settings,
        args: AppArgs,
        api: JobApi | None = None,
    ) -> None:
        self._router = router
        self._settings = settings
        self._args = args
        self._api = api
        self._openai = OpenAICalls(self._events, self._models, settings, args, api)
        self._in_work: set[asyncio.Task[Any]] = set()
        self._service_died = False

    async def handle(self, job: Job) -> Any:
        """One job's result as it is to be posted. Cancelling this call stops the job's work."""
        work = asyncio.ensure_future(self._result_of(job))
        self._in_work.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if self._service_died:
                return {"error": _SERVICE_DIED}
            work.cancel()
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # Nobody cancelled this job: something that it waited for was cancelled.
                return {"error": _JOB_LOST}
            raise
        finally:
            self._in_work.discard(work)

    def fail_all(self) -> None:
        """End every job in work, or still to come, with an error: the service has died."""
        self._service_died = True
        for work in self._in_work:
            work.cancel()

    async def _result_of(self, job: Job) -> Any:
        try:
            if self._service_died:
                return {"error": _SERVICE_DIED}
            job_input = unwrapped(job.get("input"))
            if is_call(job_input):
                return await self._openai.result_of(job["id"], job_input)
            request, streamed = self._request_of(job_input)
            reports = Reports(self._api, job["id"], streamed)
            async with reports.posted():
                events = self._events(job["id"], request, streamed)
                answer = await answer_of(events, reports.on_event)
            limit = self._settings.max_result_bytes
            return await asyncio.to_thread(fit_to_limit, answer, limit)
        except WhisperServeError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - its text is not for the caller
            logger.error(
                "event=job_failed job=%s error=%s at=%s",
                *(job["id"], type(error).__name__, error_location(error)),
            )
            return {"error": INTERNAL_ERROR}

    def _request_of(self, job_input: Any) -> tuple[dict[str, Any], bool]:
        """The contract's request, and whether its events are to be streamed."""
        if not isinstance(job_input, dict):
            raise InvalidRequestError("The job's input must be a JSON object")
        request = self._settings.with_defaults(job_input, self._args)
        return request, take_stream(request) or False

    async def _events(
        self, job_id: str, request: dict[str, Any], segments: bool
    ) -> AsyncGenerator[Event, None]:
        """The Router's events. A router that dies is asked once more."""
        attempt = partial(self._attempt, job_id, request, segments)
        on_retry = partial(
            logger.warning, "event=router_died job=%s retry=true", job_id
        )
        try:
            async with aclosing(retried_once(attempt, on_retry)) as events:
                async for event in events:
                    yield event
        except ReplicaLostError:
            raise WhisperServeError(_JOB_LOST) from None

    async def _attempt(
        self, job_id: str, request: dict[str, Any], segments: bool
    ) -> AsyncGenerator[Event, None]:
        router = self._router.options(stream=True)
        events: Any = router.events.remote(
            request, job_id, segments=segments, progress=True
        )
        try:
            with ray_errors_translated():
                async for event in events:
                    yield event
        except BaseException:
            # Nothing else would end the work of a job that is cancelled.
            events.cancel()
            raise

    async def _models(self) -> Any:
        try:
            with ray_errors_translated():
                return await self._router.models.remote()
        except ReplicaLostError:
            raise WhisperServeError(_JOB_LOST) from None
