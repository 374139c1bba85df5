"""The per-model deployment: loads one checkpoint and owns one engine.

Importing this module is cheap. Torch, whisper and the engine are imported by the thread that loads the
model, so that a replica can say that it found its place long before it can transcribe.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments import checkpoints
from deployments.config import ModelArgs
from deployments.contract.errors import (
    CheckpointError,
    ModelUnavailableError,
    RequestCancelledError,
    TranscriptionError,
    WhisperServeError,
)
from deployments.contract.schema import (
    TranscriptionRequest,
    check_fits_model,
    segments_of,
    words_of,
)
from deployments.logs import Stages, log_through_serve, place_of
from deployments.replica.metrics import EngineMetrics

if TYPE_CHECKING:
    from deployments.engine import Engine, Usage

logger = logging.getLogger(__name__)

# More than are ever in work; a caller who has left keeps his thread until the engine has noticed.
_MAX_CALLERS = 1000
# Warming up is one decode. On a CPU that takes longer than it would save the first request, which a start is for.
_WARMED_UP_DEVICES = ("cuda",)
# For the engine's thread to end, which may be in the middle of a step.
_PATIENCE_S = 60


class WhisperModel:
    """One replica of one model.

    model: what to serve
    preload: load within the constructor, so that a failure shows in `serve.status()`. Without it a
        failure is told to the callers (a failing constructor would leave them waiting for ever), and
        the next one after them finds a new attempt under way.
    gpu_share: what this replica has of one GPU, and may take of its memory; 0: it runs on the CPU
    """

    def __init__(self, model: ModelArgs, preload: bool, gpu_share: float) -> None:
        log_through_serve()
        self._model = model
        self._gpu_share = gpu_share
        # What was asked for: Ray does not hide GPUs from an actor that asked for none.
        self._device = "cuda" if gpu_share else "cpu"
        self._gpu_failed = False
        self._metrics = EngineMetrics(model.name)
        self._callers = ThreadPoolExecutor(_MAX_CALLERS, thread_name_prefix="caller")
        self._attempt = _LoadAttempt(self._load)
        if preload:
            self._attempt.future.result()

    async def ping(self) -> None:
        """Answers as soon as the replica has found its place."""

    async def ready(self) -> None:
        """Answers when the model is loaded. Raises ModelUnavailableError if it cannot be."""
        await self._engine()

    async def transcribe(
        self, audio: np.ndarray, request: TranscriptionRequest
    ) -> dict[str, Any]:
        """The part of the contract's answer that the model knows.

        audio: int16 waveform at 16 kHz, shape (samples,)
        """
        return await self._transcribe(audio, request)

    async def stream(
        self, audio: np.ndarray, request: TranscriptionRequest, segments: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """Events while the work goes on: `progress`, `segment` if wanted, and last `result`."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def on_progress(done: float, total: float) -> None:
            emit({"event": "progress", "done": done, "total": total})

        def on_segments(final: list[dict[str, Any]]) -> None:
            for segment in segments_of({"segments": final}):
                emit({"event": "segment", "segment": segment.model_dump()})

        work = asyncio.ensure_future(
            self._transcribe(
                audio, request, on_progress, on_segments if segments else None
            )
        )
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield {"event": "result", "result": await work}
        finally:
            work.cancel()
            # Nobody may be left to hear how it ended.
            work.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def slots(self) -> dict[str, int] | None:
        """How many windows can be decoded together, how many are, and how many wait; None while loading."""
        engine = self._attempt.result
        if engine is None:
            return None
        stats = engine.stats()
        return {
            "slots": stats.slots,
            "slots_in_use": stats.slots_in_use,
            "windows_waiting": stats.windows_waiting,
        }

    async def check_health(self) -> None:
        """Called by Serve; an exception has the replica replaced."""
        engine = self._attempt.result
        if engine is not None and not engine.alive:
            raise RuntimeError("the engine's thread is gone")
        if self._gpu_failed:
            raise RuntimeError("an earlier GPU error has spoilt this process")

    async def _engine(self) -> "Engine":
        if self._attempt.failed:
            # The cause may be gone.
            self._attempt = _LoadAttempt(self._load)
        return await self._attempt.wait()

    def _load(self) -> "Engine":
        """Raises ModelUnavailableError, whatever goes wrong: callers wait for a reason."""
        stages = Stages()
        name, reason = self._model.name, None
        # Meanwhile the weights are verified, which for the large ones takes as long.
        imports = threading.Thread(target=_import_engine, daemon=True)
        imports.start()
        try:
            path = checkpoints.fetch(
                name,
                self._model.checkpoint,
                progress=False,
                accept_unofficial=True,
            )
            stages.done("verify")
            imports.join()
            stages.done("import")
            engine = self._start_engine(path, stages)
        except CheckpointError as error:
            reason = str(error)
        except MemoryError:
            reason = f"out of memory ({self._device})"
        except Exception as error:  # noqa: BLE001
            self._note_gpu_failure(error)
            logger.error("model=%s at=%s", name, place_of(error))
            reason = f"loading failed ({type(error).__name__})"
        if reason is not None:
            # Here, where no traceback holds any more what had been loaded.
            self._empty_gpu_cache()
            raise self._unavailable(reason)
        stats = engine.stats()
        logger.info(
            "model=%s event=loaded device=%s seconds=%.1f"
            " slots=%d slot_mb=%.0f held_mb=%.0f %s",
            name,
            self._device,
            stages.seconds,
            stats.slots,
            stats.slot_bytes / 1e6,
            stats.bytes_held / 1e6,
            stages,
        )
        self._metrics.watch(engine)
        return engine

    def _start_engine(self, path: Path, stages: Stages) -> "Engine":
        import torch

        from deployments.engine import Engine, own_process
        from deployments.engine.upstream.timing import compile_dtw
        from deployments.replica import loading as model_loading

        own_process()
        try:
            model = model_loading.load_model(path, self._model.official)
            stages.done("read")
            engine = Engine(
                model, memory_bytes=self._memory_bytes(), device=self._device
            )
            # The engine has its own copy of it.
            del model
            self._empty_gpu_cache()
            stages.done("prepare")
            try:
                if self._device in _WARMED_UP_DEVICES:
                    model_loading.warm_up(engine)
                    stages.done("warm_up")
            except BaseException:
                engine.close()
                # Its thread holds weights and slots.
                engine.join(_PATIENCE_S)
                raise
        except torch.OutOfMemoryError as error:
            raise MemoryError from error
        # What the first request for word timestamps would do; it needs no model.
        threading.Thread(target=compile_dtw, daemon=True).start()
        return engine

    def _empty_gpu_cache(self) -> None:
        """What PyTorch holds of the GPU and does not use is for other processes."""
        torch = sys.modules.get("torch")
        if torch is not None and self._gpu_share:
            # Where an earlier error has spoilt the process, it comes again here.
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()

    def _note_gpu_failure(self, error: Exception) -> None:
        """After a kernel's failure every further call of CUDA in this process fails too."""
        torch = sys.modules.get("torch")
        if torch is not None:
            self._gpu_failed |= isinstance(error, torch.AcceleratorError)

    def _memory_bytes(self) -> int | None:
        """What the engine may take of the GPU's memory."""
        if not self._gpu_share:
            return None
        from deployments.replica.loading import card_memory

        return int(self._gpu_share * card_memory())

    def _unavailable(self, reason: str) -> ModelUnavailableError:
        logger.warning("model=%s event=load_failed reason=%s", self._model.name, reason)
        return ModelUnavailableError(self._model.name, reason)

    async def _transcribe(
        self,
        audio: np.ndarray,
        request: TranscriptionRequest,
        on_progress: Callable[[float, float], None] | None = None,
        on_segments: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> dict[str, Any]:
        engine = await self._engine()
        gone = threading.Event()
        noted: list[Usage] = []

        def work() -> dict[str, Any]:
            started = time.monotonic()
            result = engine.transcribe(
                audio,
                on_progress=on_progress,
                on_segments=on_segments,
                cancelled=gone.is_set,
                on_usage=noted.append,
                **request.whisper_options(),
            )
            seconds = time.monotonic() - started
            [usage] = noted
            self._metrics.observe(usage)
            timings = {
                "queue": usage.queue_s,
                "transcribe": seconds - usage.queue_s,
                "batch": usage.occupancy,
            }
            return self._answer(result, request, timings)

        try:
            self._check_fits(request, engine)
            return await asyncio.get_running_loop().run_in_executor(self._callers, work)
        except WhisperServeError:
            raise
        except Exception as error:  # noqa: BLE001 - its text is not for the caller
            raise self._answer_to(error) from None
        finally:
            gone.set()

    def _answer(
        self,
        result: dict[str, Any],
        request: TranscriptionRequest,
        timings: dict[str, float],
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "segments": [segment.model_dump() for segment in segments_of(result)]
        }
        if request.word_timestamps:
            answer["word_timestamps"] = [word.model_dump() for word in words_of(result)]
        return answer | {
            "detected_language": result["language"],
            "transcription": result["text"].strip(),
            "device": self._device,
            "model": self._model.name,
            "timings": timings,
        }

    def _check_fits(self, request: TranscriptionRequest, engine: "Engine") -> None:
        check_fits_model(
            request,
            model=self._model.name,
            multilingual=engine.facts.is_multilingual,
            num_languages=engine.facts.num_languages,
            n_vocab=engine.facts.dims.n_vocab,
        )

    def _answer_to(self, error: Exception) -> WhisperServeError:
        import torch

        from deployments.engine import EngineClosedError, TranscriptionCancelled

        if isinstance(error, TranscriptionCancelled):
            return RequestCancelledError("The request was cancelled")
        if isinstance(error, EngineClosedError):
            return ModelUnavailableError(self._model.name, "its engine has stopped")
        if isinstance(error, torch.OutOfMemoryError):
            self._empty_gpu_cache()
            return TranscriptionError("Transcription failed: out of GPU memory")
        self._note_gpu_failure(error)
        # The message of an unforeseen error may quote the transcript; its type and place do not.
        logger.error(
            "model=%s event=transcription_failed error=%s at=%s",
            self._model.name,
            type(error).__name__,
            place_of(error),
        )
        return TranscriptionError(f"Transcription failed: {type(error).__name__}")


def _import_engine() -> None:
    # Modules are not garbage: looking for it takes a tenth of the time.
    gc.disable()
    try:
        from deployments.replica import loading as model_loading  # noqa: F401
    finally:
        gc.enable()


class _LoadAttempt:
    """One try at loading the model, in a thread of its own, awaited by any number of callers."""

    def __init__(self, load: Callable[[], "Engine"]) -> None:
        self.future: Future[Engine] = Future()
        threading.Thread(target=self._run, args=(load,), daemon=True).start()

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None

    @property
    def result(self) -> "Engine | None":
        done = self.future.done() and not self.failed
        return self.future.result() if done else None

    async def wait(self) -> "Engine":
        # A caller who leaves takes nobody else along.
        return await asyncio.shield(asyncio.wrap_future(self.future))

    def _run(self, load: Callable[[], "Engine"]) -> None:
        try:
            self.future.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self.future.set_exception(error)
