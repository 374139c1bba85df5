"""The router's side of one model's deployment: admission, start, dispatch, deadline, retry."""

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.audio import SAMPLE_RATE
from deployments.config import AppArgs, ModelArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import ModelUnavailableError
from deployments.contract.options import TranscriptionOptions
from deployments.cpus import available_cpus
from deployments.replica.shared_audio import SharedAudio
from deployments.replica.transcript import ReplicaEvent, Reply, SlotUse, Transcript
from deployments.router.admission import Admission, Limits
from deployments.router.deadline import Deadline
from deployments.router.dispatch_queue import DispatchQueue
from deployments.router.harmful_audio import HarmfulAudio
from deployments.router.removal import Removal
from deployments.router.retry import (
    ReplicaLostError,
    ray_errors_translated,
    retried_once,
)
from deployments.router.speed import Speed
from deployments.router.stages import OnStage, ignore_stage
from deployments.router.start_failure import NoReplicaError, start_failure

logger = logging.getLogger(__name__)

# A replica that answered this recently is not asked again whether it is ready.
_STILL_READY_S = 1.0
# A replica that has loaded the model answers sooner than this. After that time the stage
# `starting_model` is reported.
_READY_WITHIN_S = 0.5
# A replica that is busy loading may leave the question about its slots unanswered.
_SLOTS_TIMEOUT_S = 1.0
# Idle replicas are asked no more often than this: Serve may count a call as traffic, and so keep
# them from scaling to zero.
_STILL_IDLE_S = 5.0
# A replica that was full is asked again after this long, or when a request of this router ends.
_STILL_FULL_S = 0.25

# Makes a waveform available to replicas.
ShareAudio = Callable[[np.ndarray], SharedAudio]


class ModelClient:
    """What the router knows of one model's deployment.

    gpu_share: the share of one GPU that a replica asks for; 0 where there is none
    share_audio: makes a waveform available to replicas
    stopping: whether the service stops

    admission: of the requests for this model; `stream` is for those that have a place
    """

    def __init__(
        self,
        model: ModelArgs,
        handle: DeploymentHandle[Any],
        args: AppArgs,
        gpu_share: float,
        share_audio: ShareAudio = SharedAudio.put,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self._handle = handle
        self._args = args
        self._gpu_share = gpu_share
        self._share_audio = share_audio
        self._speed = Speed()
        self.admission = Admission(model.name, self._limits(), self._speed)
        self._harmful = HarmfulAudio(model.name, stopping)
        self._queue = DispatchQueue()
        self._removal = Removal(model.deployment)
        self._request_ended = asyncio.Event()
        self._answered_at = -math.inf
        # When a replica last said whether it has room.
        self._replied_at = -math.inf
        # By number of replicas: their slots when they were last idle, and when that was.
        self._idle: dict[int, tuple[SlotUse, float]] = {}
        # Whether a replica had loaded the model when the replicas last answered.
        self._loaded = False

    def set_limits(self, args: AppArgs) -> None:
        """Take over other limits. A limit that a request has begun to use stays as it was."""
        self._args = args
        self.admission.set_limits(self._limits())

    def _limits(self) -> Limits:
        args = self._args
        return Limits(
            in_work=args.max_concurrency(self.model, self._gpu_share > 0),
            in_work_s=args.audio_in_work_s(self.model),
            waiting=args.max_waiting_requests,
            per_key=args.max_requests_per_key,
            decoding=available_cpus(),
            # One key gets half of it: the longest recording there is, and what was begun beside it.
            decoded_s=2 * args.max_audio_s,
            wait_s=args.request_timeout_s,
        )

    async def stream(
        self,
        audio: np.ndarray,
        options: TranscriptionOptions,
        segments: bool = True,
        progress: bool = True,
        on_stage: OnStage = ignore_stage,
    ) -> AsyncGenerator[ReplicaEvent, None]:
        """A replica's events; the transcript, which comes last, has `model_start_s`.

        audio: int16 waveform at 16 kHz, shape (samples,)
        segments, progress: whether these events are wanted; stages are wanted with the progress
        on_stage: called where the model has to start, and where the request waits for a replica

        A request whose replica dies is tried once more, but not after a segment has gone out.
        Raises ModelUnavailableError, RequestTimeoutError, HarmfulAudioError and what the replica
        raises.
        """
        request = _Request(audio, options, segments, progress, on_stage)
        deadline = Deadline(self._args.request_timeout_s)

        def attempt() -> AsyncGenerator[ReplicaEvent, None]:
            return self._attempt(request, deadline)

        def on_retry() -> None:
            logger.warning("event=replica_died model=%s retry=true", self.model.name)

        try:
            async with aclosing(retried_once(attempt, on_retry)) as events:
                async for event in events:
                    yield event
        except ReplicaLostError:
            raise self._unavailable("its replica died during this request") from None
        except NoReplicaError as error:
            reason = await asyncio.to_thread(start_failure, self.model, self._gpu_share)
            raise self._unavailable(reason or error.args[1]) from None

    async def slots(self, replicas: int) -> SlotUse | None:
        """How the slots of all replicas that have loaded the model are used. Starts no replica.

        replicas: how many run

        None where no replica has loaded the model, or one does not answer within a second.
        """
        if not replicas:
            return None
        idle, asked_at = self._idle.get(replicas, (None, -math.inf))
        if not self.admission.in_work and time.monotonic() - asked_at < _STILL_IDLE_S:
            return idle
        loaded = await self._slots_of_each()
        if not loaded:
            return None
        total = SlotUse(
            slots=sum(answer.slots for answer in loaded),
            slots_in_use=sum(answer.slots_in_use for answer in loaded),
            windows_waiting=sum(answer.windows_waiting for answer in loaded),
        )
        if len(loaded) == replicas and not total.slots_in_use:
            self._idle[replicas] = (total, time.monotonic())
        return total

    async def loaded(self) -> bool:
        """Whether a replica has loaded the model. Starts no replica.

        Where none answers within a second, as on a busy machine, what the last answer said holds.

        The replicas are asked, because Serve's status lists none of them while it builds a changed
        application.
        """
        answers = await self._slots_of_each()
        if answers is not None:
            self._loaded = bool(answers)
        return self._loaded

    async def _slots_of_each(self) -> list[SlotUse] | None:
        """The slots of each replica that has loaded the model; None where that is not known."""
        try:
            answers = await self._handle.broadcast("slots").results_async(
                timeout_s=_SLOTS_TIMEOUT_S, return_exceptions=True
            )
        except TimeoutError:
            return None
        except DeploymentUnavailableError:
            return []
        except (RayError, RuntimeError) as error:
            # GET /models must answer even if one model cannot.
            logger.warning(
                "event=slots_unknown model=%s error=%s",
                self.model.name,
                type(error).__name__,
            )
            return None
        # A replica that is still loading answers None, and one that has died an error.
        return [answer for answer in answers if isinstance(answer, SlotUse)]

    async def _attempt(
        self, request: "_Request", deadline: Deadline
    ) -> AsyncGenerator[ReplicaEvent, None]:
        """One replica's events. Raises ReplicaLostError if the replica dies."""
        audio_s: float | None = None
        # Before a suspect's turn, so that suspects wait for a start side by side.
        with self._errors_translated():
            model_start_s = await self._start(request)
        async with self._harmful.attempt(request.audio, deadline) as attempt:
            with self._errors_translated():
                waiting_since = time.monotonic()
                events = await self._dispatch(request)
                waited_s = attempt.waited_s + time.monotonic() - waiting_since
                attempt.accepted()
                begun = self._speed.begin()
                exhausted = False
                try:
                    while True:
                        async with deadline.running():
                            event = await anext(events, None)
                        if event is None:
                            exhausted = True
                            return
                        self._answered_at = time.monotonic()
                        if isinstance(event, Transcript):
                            audio_s = request.duration_s
                            event = dataclasses.replace(
                                event,
                                model_start_s=model_start_s,
                                queue_s=event.queue_s + waited_s,
                            )
                        yield event
                finally:
                    # Neither a deadline nor a caller who leaves would end the work by itself.
                    if not exhausted:
                        events.cancel()
                    self._speed.end(begun, audio_s)
                    self._request_ended.set()

    async def _dispatch(self, request: "_Request") -> Any:
        """The further events of a replica that has accepted the request.

        While all replicas are full, the request waits for the first one that has room. Requests
        are dispatched one at a time, so none overtakes another.
        """
        stream = self._handle.options(stream=True).stream
        waiting_since = time.monotonic()
        async with self._queue.head(partial(request.report_stage, "queued")):
            shared = await asyncio.to_thread(self._share_audio, request.audio)
            while True:
                self._request_ended.clear()
                events: Any = stream.remote(
                    shared, request.options, request.segments, request.progress
                )
                # The limit counts from the last answer of any replica, so that the next requests in
                # the queue do not wait for the whole limit once more.
                silent_since = max(waiting_since, self._replied_at)
                reply = await self._first_answer(anext(events), events, silent_since)
                self._replied_at = time.monotonic()
                if reply is Reply.ACCEPTED:
                    return events
                waiting = await anext(events)
                # To the end, because a stream that is left early counts as cancelled.
                await anext(events, None)
                self._queue.replicas_full(waiting.windows_ahead)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STILL_FULL_S):
                        await self._request_ended.wait()

    async def _start(self, request: "_Request") -> float:
        """Wait until a replica has loaded the model, starting one if there is none.

        Returns the seconds that this took. Raises ModelUnavailableError.
        """
        started = time.monotonic()
        if started - self._answered_at < _STILL_READY_S:
            return 0.0
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_READY_WITHIN_S, request.report_stage, "starting_model")
        try:
            if self._gpu_share:
                await self._placement()
            ready = self._handle.ready.remote()
            await self._first_answer(ready, ready, time.monotonic())
        finally:
            timer.cancel()
        return time.monotonic() - started

    async def _placement(self) -> None:
        """Wait until a replica has its share of a GPU."""
        limit = self._args.placement_timeout_s
        ping = self._handle.ping.remote()
        await self._answer_within(
            limit,
            ping,
            f"no free share of a GPU (it needs {self._gpu_share:g} of one)"
            f" within {limit:g} s",
            ping,
        )

    async def _first_answer(
        self, answer: Awaitable[Any], call: Any, silent_since: float
    ) -> Any:
        """What a replica answers that may have to start first."""
        limit = self._args.model_start_timeout_s
        left = silent_since + limit - time.monotonic()
        reason = f"it is still starting after {limit:g} s, try again later"
        return await self._answer_within(left, answer, reason, call)

    async def _answer_within(
        self, limit: float, answer: Awaitable[Any], reason: str, call: Any
    ) -> Any:
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                return await self._removal.unless_removed(answer)
        except BaseException:
            # Neither the limit nor a caller who leaves would end the call by itself.
            call.cancel()
            if timer.expired():
                raise NoReplicaError(self.model.name, reason) from None
            raise

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            with ray_errors_translated():
                yield
        except ReplicaLostError:
            self._answered_at = -math.inf
            raise
        except (DeploymentUnavailableError, BackPressureError):
            raise NoReplicaError(
                self.model.name, "its deployment takes no requests now"
            ) from None

    def _unavailable(self, reason: str) -> ModelUnavailableError:
        return ModelUnavailableError(self.model.name, reason)


@dataclass(frozen=True, eq=False)
class _Request:
    """What a replica is asked for, and where its stages until then are reported."""

    audio: np.ndarray
    options: TranscriptionOptions
    segments: bool
    progress: bool
    on_stage: OnStage

    @property
    def duration_s(self) -> float:
        return len(self.audio) / SAMPLE_RATE

    def report_stage(
        self,
        stage: Literal["queued", "starting_model"],
        windows_ahead: int | None = None,
    ) -> None:
        self.on_stage(
            Stage(stage=stage, duration=self.duration_s, windows_ahead=windows_ahead)
        )
