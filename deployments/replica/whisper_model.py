"""The per-model deployment: loads one checkpoint and owns one engine.

Importing this module is cheap. Torch, whisper and the engine are imported by the thread that loads
the model, so that a replica can tell that it has found its place long before it can transcribe.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deployments import checkpoints
from deployments.config import ModelArgs
from deployments.contract.answer import (
    Progress,
    SegmentEvent,
    segments_of,
    words_of,
)
from deployments.contract.errors import (
    CheckpointError,
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
from deployments.replica.metrics import EngineMetrics
from deployments.replica.transcript import ReplicaEvent, SlotUse, Transcript
from deployments.replica.warnings import warnings_of

if TYPE_CHECKING:
    from deployments.engine import Engine, Usage
    from deployments.engine.upstream.transcribe import OnProgress, OnSegments

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
    """

    def __init__(self, model: ModelArgs, preload: bool, gpu_share: float) -> None:
        log_through_serve()
        self._model = model
        self._gpu_share = gpu_share
        # By the share, because Ray does not hide GPUs from an actor that asked for none.
        self._device: Literal["cuda", "cpu"] = "cuda" if gpu_share else "cpu"
        self._gpu_broken = False
        # `replica.loading`, once it is imported; until then nothing can be on the GPU.
        self._loading: ModuleType | None = None
        self._metrics = EngineMetrics(model.name)
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="request")
        self._attempt = _LoadAttempt(self._load)
        if preload:
            self._attempt.future.result()

    async def ping(self) -> None:
        """Answers as soon as the replica has found its place."""

    async def ready(self) -> None:
        """Answers when the model is loaded. Raises ModelUnavailableError if it cannot be."""
        await self.engine()

    async def stream(
        self,
        audio: np.ndarray,
        options: TranscriptionOptions,
        segments: bool = True,
        progress: bool = True,
    ) -> AsyncGenerator[ReplicaEvent, None]:
        """Progress and final segments while the work goes on, and the transcript at the end.

        audio: int16 waveform at 16 kHz, shape (samples,)
        segments, progress: whether these events are wanted
        """
        events: asyncio.Queue[ReplicaEvent | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: ReplicaEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def on_progress(done: float, total: float) -> None:
            emit(Progress(done=done, total=total))

        def on_segments(final: list[dict[str, Any]]) -> None:
            for segment in segments_of(final):
                emit(SegmentEvent(segment=segment))

        work = asyncio.ensure_future(
            self._transcribe(
                audio,
                options,
                on_progress if progress else None,
                on_segments if segments else None,
            )
        )
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield await work
        finally:
            work.cancel()
            # The outcome is looked at here, because nobody else may be left to do so.
            work.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def slots(self) -> SlotUse | None:
        """How the engine's slots are used; None while the model is loading."""
        engine = self._attempt.engine
        if engine is None:
            return None
        stats = engine.stats()
        return SlotUse(stats.slots, stats.slots_in_use, stats.windows_waiting)

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        engine = self._attempt.engine
        if engine is not None and not engine.alive:
            raise RuntimeError("the engine's thread is gone")
        if self._gpu_broken:
            raise RuntimeError("an earlier GPU error has broken this process")

    async def engine(self) -> "Engine":
        """The engine, once the model is loaded. Raises ModelUnavailableError if it cannot be."""
        if self._attempt.failed:
            # What made the last attempt fail may be gone.
            self._attempt = _LoadAttempt(self._load)
        return await self._attempt.wait()

    def _load(self) -> "Engine":
        """Raises ModelUnavailableError, whatever goes wrong: callers wait for a reason."""
        # Before the libraries are imported. A wrong setting is told by `_try_to_load`.
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
        except (CheckpointError, CpuThreadsError) as error:
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
        # If the import fails, the thread that loads the model imports again, and tells the error.
        with contextlib.suppress(Exception):
            from deployments.replica import loading

            self._loading = loading

    def _note_gpu_failure(self, error: Exception) -> None:
        if self._loading is not None:
            self._gpu_broken |= self._loading.breaks_gpu(error)

    async def _transcribe(
        self,
        audio: np.ndarray,
        options: TranscriptionOptions,
        on_progress: "OnProgress | None",
        on_segments: "OnSegments | None",
    ) -> Transcript:
        engine = await self.engine()
        cancelled = threading.Event()

        def work() -> Transcript:
            used: list[Usage] = []
            started = time.monotonic()
            result = engine.transcribe(
                audio,
                on_progress=on_progress,
                on_segments=on_segments,
                cancelled=cancelled.is_set,
                on_usage=used.append,
                **options.whisper_options(),
            )
            seconds = time.monotonic() - started
            [usage] = used
            self._metrics.observe(usage)
            segments = result["segments"]
            return Transcript(
                segments=segments_of(segments),
                words=words_of(segments) if options.word_timestamps else None,
                text=result["text"],
                language=result["language"],
                language_probability=usage.language_probability,
                device=self._device,
                queue_s=usage.queue_s,
                transcribe_s=seconds - usage.queue_s,
                batch_windows=usage.occupancy,
                warnings=warnings_of(options, engine, audio),
            )

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


class _LoadAttempt:
    """One attempt at loading the model, in its own thread, awaited by any number of callers."""

    def __init__(self, load: Callable[[], "Engine"]) -> None:
        self.future: Future[Engine] = Future()
        threading.Thread(target=self._run, args=(load,), daemon=True).start()

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None

    @property
    def engine(self) -> "Engine | None":
        """None while the attempt goes on, and where it has failed."""
        done = self.future.done() and not self.failed
        return self.future.result() if done else None

    async def wait(self) -> "Engine":
        # Shielded, because a caller who leaves must not cancel the attempt for the others.
        return await asyncio.shield(asyncio.wrap_future(self.future))

    def _run(self, load: Callable[[], "Engine"]) -> None:
        try:
            self.future.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self.future.set_exception(error)
