"""The per-model deployment: loads one checkpoint and owns one engine.

Importing this module is cheap. Torch, whisper and the engine are imported by the thread that loads
the model, so that a replica can answer that it has found its place long before it can transcribe.
"""

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from deployments import checkpoints
from deployments.audio import SAMPLE_RATE
from deployments.config import ModelArgs, max_batch_windows, requests_per_replica
from deployments.contract.answer import Stage
from deployments.contract.errors import (
    CheckpointError,
    DeviceError,
    ModelUnavailableError,
    RequestCancelledError,
    TranscriptionError,
    WhisperServeError,
)
from deployments.contract.options import (
    ModelLimits,
    TranscriptionOptions,
    check_fits_model,
)
from deployments.cpus import CpuThreadsError, cpu_threads, limit_library_threads
from deployments.logs import Stages, error_location, log_through_serve
from deployments.replica import nvidia
from deployments.replica.event_queue import EventQueue
from deployments.replica.load_attempt import LoadAttempt
from deployments.replica.metrics import EngineMetrics
from deployments.replica.owners import OwnerWatch
from deployments.replica.scaling import LOAD_FAILED
from deployments.replica.serve_ports import keep_ports_on_loopback
from deployments.replica.shared_audio import SharedAudio
from deployments.replica.slot_shares import SlotShares
from deployments.replica.transcript import ReplicaEvent, Reply, SlotUse, Transcript

if TYPE_CHECKING:
    from deployments.engine import Engine

logger = logging.getLogger(__name__)

# More threads than requests that are ever in work: the thread of a caller who has left stays in
# use until the engine has noticed.
_MAX_THREADS = 1000


class WhisperModel:
    """One replica of one model.

    model: what to serve
    preload: load within the constructor, so that a failure shows in `serve.status()`. Otherwise
        callers are told of a failure (a failing constructor would leave them waiting for ever),
        and the next caller after them finds a new attempt under way.
    gpu_share: the share of one GPU that this replica has, and may take of its memory; 0: it runs
        on the CPU
    max_decode_rate: seconds of the engine's time that a request may take for a second of its audio
    """

    def __init__(
        self,
        model: ModelArgs,
        preload: bool,
        gpu_share: float,
        max_decode_rate: float = math.inf,
    ) -> None:
        log_through_serve()
        self._model = model
        self._gpu_share = gpu_share
        self._max_decode_rate = max_decode_rate
        # By the share, because Ray does not hide GPUs from an actor that asked for none.
        self._device: Literal["cuda", "cpu"] = "cuda" if gpu_share else "cpu"
        self._gpu_broken = False
        # `replica.loading`, once it is imported; until then nothing can be on the GPU.
        self._loading: ModuleType | None = None
        self._metrics = EngineMetrics(model.name)
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="request")
        self._owners = OwnerWatch()
        self._shares = SlotShares()
        self._accepted = 0
        self._attempt = LoadAttempt(self._load)
        if preload:
            self._attempt.future.result()

    async def ping(self) -> None:
        """Answers as soon as the replica has found its place."""

    async def ready(self) -> None:
        """Answers when the model is loaded. Raises ModelUnavailableError if it cannot be."""
        await self.engine()

    async def stream(
        self,
        audio: SharedAudio,
        options: TranscriptionOptions,
        segments: bool = True,
        progress: bool = True,
    ) -> AsyncGenerator[Reply | ReplicaEvent, None]:
        """Whether the request is accepted, and then its events; the transcript comes last.

        A full replica yields a stage that has the number of windows that wait.

        segments, progress: whether these events are wanted; stages are wanted with the progress
        """
        accepted, slots = self._accepted, self._slots()
        if accepted >= requests_per_replica(slots):
            yield Reply.FULL
            yield Stage(stage="queued", windows_ahead=accepted - slots)
            return
        self._accepted += 1
        queue = EventQueue(
            segments=segments, progress=progress, words=options.word_timestamps
        )
        try:
            yield Reply.ACCEPTED
            # Requests wait only where they outnumber the slots: each has one window at a time, and
            # those that are cut into chunks have more only of what the others leave.
            windows_ahead = accepted - slots if accepted >= slots else None
            async with aclosing(
                self._events(audio, options, queue, windows_ahead)
            ) as events:
                async for event in events:
                    yield event
        finally:
            self._accepted -= 1

    async def slots(self) -> SlotUse | None:
        """How the engine's slots are used; None while the model is loading."""
        engine = self._attempt.engine
        if engine is None:
            return None
        stats = engine.stats()
        return SlotUse(stats.slots, stats.slots_in_use, stats.windows_waiting)

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        keep_ports_on_loopback()
        engine = self._attempt.engine
        if engine is not None and not engine.alive:
            raise RuntimeError("the engine's thread is gone")
        if self._gpu_broken:
            raise RuntimeError("an earlier GPU error has broken this process")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds, for the policy that scales this deployment."""
        return {LOAD_FAILED: float(self._attempt.failed)}

    async def engine(self) -> "Engine":
        """The engine, once the model is loaded. Raises ModelUnavailableError if it cannot be."""
        if self._attempt.failed:
            # What made the last attempt fail may be gone.
            self._attempt = LoadAttempt(self._load)
        return await self._attempt.wait()

    def _slots(self) -> int:
        engine = self._attempt.engine
        if engine is None:
            return max_batch_windows(self._gpu_share > 0)
        return engine.stats().slots

    async def _events(
        self,
        audio: SharedAudio,
        options: TranscriptionOptions,
        queue: EventQueue,
        windows_ahead: int | None,
    ) -> AsyncGenerator[ReplicaEvent, None]:
        work = asyncio.ensure_future(
            self._transcribe(audio, options, queue, windows_ahead)
        )
        try:
            with self._owners.watching(audio.owner, work):
                async for event in queue.until_done(work):
                    yield event
        finally:
            work.cancel()
            # asyncio would log an exception that nobody retrieves, and the caller may be gone.
            work.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _load(self) -> "Engine":
        """Raises ModelUnavailableError, whatever goes wrong: callers wait for a reason."""
        # Before the libraries are imported. `_try_to_load` reports a wrong setting.
        with contextlib.suppress(CpuThreadsError):
            limit_library_threads(cpu_threads())
        # Verifying the weights of a large model takes as long as the imports do.
        imports = threading.Thread(target=self._import_loading, daemon=True)
        imports.start()
        stages = Stages()
        engine, reason = self._try_to_load(stages, imports)
        if engine is None:
            # Outside the except blocks: their tracebacks would keep the half-loaded model alive.
            if self._loading is not None:
                self._loading.empty_gpu_cache()
            logger.warning(
                "event=load_failed model=%s reason=%s", self._model.name, reason
            )
            raise ModelUnavailableError(self._model.name, reason)
        stats = engine.stats()
        logger.info(
            "event=loaded model=%s device=%s seconds=%.1f"
            " slots=%d slot_mb=%.0f held_mb=%.0f %s",
            self._model.name,
            self._device,
            stages.seconds,
            stats.slots,
            stats.slot_bytes / 1e6,
            stats.bytes_held / 1e6,
            stages,
        )
        self._metrics.watch(engine)
        return engine

    def _try_to_load(
        self, stages: Stages, imports: threading.Thread
    ) -> "tuple[Engine | None, str]":
        """The engine, or None and the reason why there is none."""
        name = self._model.name
        try:
            if self._gpu_share and (problem := nvidia.problem()):
                # Before weights are downloaded for nothing.
                raise DeviceError(problem)
            path = checkpoints.fetch(
                name, self._model.checkpoint, progress=False, accept_unofficial=True
            )
            stages.done("verify")
            imports.join()
            from deployments.replica import loading

            stages.done("import")
            engine = loading.load_engine(
                path, self._model.official, self._gpu_share, stages
            )
        except (CheckpointError, CpuThreadsError, DeviceError) as error:
            return None, str(error)
        except MemoryError:
            return None, f"out of memory ({self._device})"
        except Exception as error:  # noqa: BLE001 - callers wait for a reason
            self._note_gpu_failure(error)
            logger.error(
                "event=load_error model=%s error=%s at=%s",
                name,
                type(error).__name__,
                error_location(error),
            )
            return None, f"loading failed ({type(error).__name__})"
        return engine, ""

    def _import_loading(self) -> None:
        # If the import fails, the thread that loads the model imports again, and reports the error.
        with contextlib.suppress(Exception):
            from deployments.replica import loading

            self._loading = loading

    def _note_gpu_failure(self, error: Exception) -> None:
        if self._loading is not None:
            self._gpu_broken |= self._loading.breaks_gpu(error)

    async def _transcribe(
        self,
        shared: SharedAudio,
        options: TranscriptionOptions,
        queue: EventQueue,
        windows_ahead: int | None,
    ) -> Transcript:
        engine = await self.engine()
        audio = await shared.samples()
        duration_s = len(audio) / SAMPLE_RATE
        if windows_ahead is not None:
            queue.queued(duration_s, windows_ahead)
        cancelled = threading.Event()

        def work() -> Transcript:
            from deployments.replica.transcribing import LimitedEngine, transcribe

            transcript, usage = transcribe(
                LimitedEngine(engine, self._max_decode_rate),
                self._shares,
                audio,
                options,
                self._device,
                cancelled=cancelled.is_set,
                **queue.callbacks(duration_s),
            )
            if usage.windows:
                self._metrics.observe(usage)
            return transcript

        try:
            self._check_fits(options, engine)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except WhisperServeError:
            raise
        except Exception as error:  # noqa: BLE001 - the error's text is not for the caller
            raise self._as_answer(error) from None
        finally:
            cancelled.set()

    def _check_fits(self, options: TranscriptionOptions, engine: "Engine") -> None:
        facts = engine.facts
        limits = ModelLimits(
            facts.is_multilingual, facts.num_languages, facts.dims.n_vocab
        )
        check_fits_model(options, self._model.name, limits)

    def _as_answer(self, error: Exception) -> WhisperServeError:
        from deployments.engine import EngineClosedError, TranscriptionCancelled
        from deployments.replica.loading import empty_gpu_cache, is_out_of_memory

        if isinstance(error, TranscriptionCancelled):
            return RequestCancelledError("The request was cancelled")
        if isinstance(error, EngineClosedError):
            return ModelUnavailableError(self._model.name, "its engine has stopped")
        if is_out_of_memory(error):
            empty_gpu_cache()
            return TranscriptionError("Transcription failed: out of GPU memory")
        self._note_gpu_failure(error)
        # The text of an unforeseen error may quote the transcript; its type and place do not.
        logger.error(
            "event=transcription_failed model=%s error=%s at=%s",
            self._model.name,
            type(error).__name__,
            error_location(error),
        )
        return TranscriptionError(f"Transcription failed: {type(error).__name__}")
