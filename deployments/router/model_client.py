"""From the router to the replicas of one model: admission, start, deadlines, cancellation, one retry."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import numpy as np
from ray.exceptions import (
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import (
    ModelUnavailableError,
    OverloadedError,
    RequestTimeoutError,
    WhisperServeError,
)
from deployments.contract.schema import TranscriptionRequest

logger = logging.getLogger(__name__)

# A replica that answered this recently is not asked again whether it is ready.
_STILL_THERE_S = 1.0
# A replica that is busy starting may leave this question unanswered.
_SLOTS_TIMEOUT_S = 1.0


class _ReplicaDiedError(Exception):
    """The replica went away with the request; nothing is wrong with the request."""


class ModelClient:
    """What the router knows of one model's deployment.

    gpu_share: what a replica asks of one GPU; 0 where there is none
    at_once: how many requests are admitted at the same time
    """

    def __init__(
        self,
        model: ModelArgs,
        handle: DeploymentHandle[Any],
        args: AppArgs,
        gpu_share: float,
    ) -> None:
        self.model = model
        self._handle = handle
        self._args = args
        self._gpu_share = gpu_share
        self.at_once = args.requests_at_once(model, gpu_share > 0)
        self._places = asyncio.Semaphore(self.at_once)
        self._admitted = 0
        self._waiting = 0
        self._answered_at = -math.inf
        self._slots_of: dict[int, int] = {}

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold one of the model's places, in order of arrival: what is in memory at once stays bounded.

        Raises OverloadedError where too many wait already.
        """
        if self._places.locked() and self._waiting >= self._args.max_waiting_requests:
            raise OverloadedError(
                f"Too many requests wait for model '{self.model.name}', try again later"
            )
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1
            self._places.release()

    async def transcribe(
        self, audio: np.ndarray, request: TranscriptionRequest
    ) -> dict[str, Any]:
        """The model's part of the answer, with `model_start` among its timings.

        audio: int16 waveform at 16 kHz, shape (samples,)

        A request whose replica dies is tried once more; transcription is idempotent. Raises
        ModelUnavailableError, RequestTimeoutError and what the replica raises.
        """
        budget = _Budget(self._args.request_timeout_s)
        try:
            return await self._transcribe_once(audio, request, budget)
        except _ReplicaDiedError:
            logger.warning("model=%s event=replica_died retry=true", self.model.name)
        try:
            return await self._transcribe_once(audio, request, budget)
        except _ReplicaDiedError:
            raise self._replica_died() from None

    async def stream(
        self, audio: np.ndarray, request: TranscriptionRequest, segments: bool = True
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The replica's events; the result, which comes last, is that of `transcribe`.

        Once a segment has gone out, a request whose replica dies is not tried again.
        """
        budget = _Budget(self._args.request_timeout_s)
        segment_went_out = False
        try:
            attempt = self._stream_once(audio, request, segments, budget)
            async with aclosing(attempt) as events:
                async for event in events:
                    segment_went_out |= event["event"] == "segment"
                    yield event
            return
        except _ReplicaDiedError:
            if segment_went_out:
                raise self._replica_died() from None
            logger.warning("model=%s event=replica_died retry=true", self.model.name)
        try:
            attempt = self._stream_once(audio, request, segments, budget)
            async with aclosing(attempt) as events:
                async for event in events:
                    yield event
        except _ReplicaDiedError:
            raise self._replica_died() from None

    async def slots(self, replicas: int) -> dict[str, int] | None:
        """`slots`, `slots_in_use` and `windows_waiting`, summed over the replicas that have loaded the
        model; None where there is none, or one does not answer within a second. Starts none.

        replicas: how many run
        """
        if not replicas:
            return None
        if not self._admitted and (slots := self._slots_of.get(replicas)):
            # To Serve a question is a request: an idle replica that is often asked would never stop.
            return {"slots": slots, "slots_in_use": 0, "windows_waiting": 0}
        try:
            answers = await self._handle.broadcast("slots").results_async(
                timeout_s=_SLOTS_TIMEOUT_S, return_exceptions=True
            )
        except (TimeoutError, DeploymentUnavailableError):
            return None
        except (RayError, RuntimeError) as error:
            # One model's trouble hides no other one in the list.
            logger.warning(
                "model=%s event=slots_unknown error=%s",
                self.model.name,
                type(error).__name__,
            )
            return None
        # The others still load the model, or have died.
        loaded = [answer for answer in answers if isinstance(answer, dict)]
        if not loaded:
            return None
        total = {key: sum(answer[key] for answer in loaded) for key in loaded[0]}
        if len(loaded) == replicas:
            self._slots_of[replicas] = total["slots"]
        return total

    async def _transcribe_once(
        self, audio: np.ndarray, request: TranscriptionRequest, budget: "_Budget"
    ) -> dict[str, Any]:
        with self._ray_errors_translated():
            model_start = await self._start()
            response = self._handle.transcribe.remote(audio, request)
            async with budget.spent():
                answer: dict[str, Any] = await _answer_to(response)
            self._answered_at = time.monotonic()
            answer["timings"]["model_start"] = model_start
            return answer

    async def _stream_once(
        self,
        audio: np.ndarray,
        request: TranscriptionRequest,
        segments: bool,
        budget: "_Budget",
    ) -> AsyncGenerator[dict[str, Any], None]:
        with self._ray_errors_translated():
            model_start = await self._start()
            handle = self._handle.options(stream=True)
            events: Any = handle.stream.remote(audio, request, segments)
            try:
                while True:
                    async with budget.spent():
                        event = await anext(events, None)
                    if event is None:
                        return
                    if event["event"] == "result":
                        event["result"]["timings"]["model_start"] = model_start
                    yield event
            finally:
                events.cancel()

    async def _start(self) -> float:
        """Wait until a replica has loaded the model, starting one if there is none; gives the seconds."""
        started = time.monotonic()
        if started - self._answered_at < _STILL_THERE_S:
            return 0.0
        if self._gpu_share:
            limit = self._args.placement_timeout_s
            await self._answer_within(
                limit,
                self._handle.ping.remote(),
                f"no free share of a GPU (it needs {self._gpu_share:g} of one)"
                f" within {limit:g} s",
            )
        limit = self._args.model_start_timeout_s
        await self._answer_within(
            limit,
            self._handle.ready.remote(),
            f"it is still starting after {limit:g} s, try again later",
        )
        return time.monotonic() - started

    async def _answer_within(self, limit: float, response: Any, reason: str) -> None:
        try:
            async with asyncio.timeout(limit):
                await _answer_to(response)
        except TimeoutError:
            raise ModelUnavailableError(self.model.name, reason) from None

    @contextmanager
    def _ray_errors_translated(self) -> Iterator[None]:
        try:
            yield
        except RayTaskError as error:
            # It poses as the replica's own error, but its text is a traceback.
            if isinstance(error.cause, WhisperServeError):
                raise error.cause from None
            raise
        except (RayActorError, WorkerCrashedError):
            self._answered_at = -math.inf
            raise _ReplicaDiedError from None
        except (DeploymentUnavailableError, BackPressureError):
            raise ModelUnavailableError(
                self.model.name, "its deployment takes no requests now"
            ) from None

    def _replica_died(self) -> ModelUnavailableError:
        return ModelUnavailableError(
            self.model.name, "its replica died during this request"
        )


async def _answer_to(response: Any) -> Any:
    """Await a handle's call. Neither a deadline nor a caller who leaves would end its work by itself."""
    try:
        return await response
    except BaseException:
        response.cancel()
        raise


class _Budget:
    """`request_timeout_s` of one request, spent while it is with a replica; the model's start is counted apart."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._spent = 0.0

    @asynccontextmanager
    async def spent(self) -> AsyncIterator[None]:
        """Raises RequestTimeoutError when there is nothing left."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._limit - self._spent):
                yield
        except TimeoutError:
            raise RequestTimeoutError(
                f"The request took longer than {self._limit:g} s"
            ) from None
        finally:
            self._spent += time.monotonic() - started
