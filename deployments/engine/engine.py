"""The engine's face, over official decoding: one recording at a time, in order of arrival."""

import threading
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Self

import numpy as np
import torch
from whisper.audio import SAMPLE_RATE
from whisper.model import Whisper

from deployments.engine.long_form import (
    Cancelled,
    OnProgress,
    OnSegments,
    TranscriptionCancelled,
    transcribe,
)

# Samples at temperature > 0 are drawn from this seed, set anew for each recording, so that they never
# depend on what was decoded before.
SEED = 0
_CANCEL_POLL_S = 0.1


class EngineClosedError(RuntimeError):
    """The engine was closed, or its thread is gone; the recording was not transcribed."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine does now and has done. `slots` are windows that can be decoded together."""

    slots: int
    slots_in_use: int
    windows_waiting: int
    windows_done: int
    audio_seconds_done: float
    bytes_held: int


@dataclass(eq=False)
class _Job:
    audio: np.ndarray  # (samples,)
    options: dict[str, Any]
    on_progress: OnProgress | None
    cancelled: Cancelled
    future: Future[dict[str, Any]] = dataclass_field(default_factory=Future)


class Engine:
    """Transcribes waveforms with one model; any number of threads may call.

    model: on the device it shall run on; nobody else may use it meanwhile
    max_windows: at most this many windows are decoded together. Official decoding can do one.

    Official code is not safe under concurrency (`decode` and `find_alignment` put hooks on shared
    modules), so a thread of the engine's own does all the work, one recording after the other.
    """

    def __init__(self, model: Whisper, max_windows: int | None = None) -> None:
        if max_windows not in (None, 1):
            raise ValueError("max_windows: official decoding does one window at a time")
        self.model = model
        self._jobs: deque[_Job] = deque()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._windows_done = 0
        self._audio_seconds_done = 0.0
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread takes work."""
        return self._worker.is_alive() and not self._closed

    def transcribe(
        self,
        audio: np.ndarray,
        *,
        on_progress: OnProgress | None = None,
        on_segments: OnSegments | None = None,
        cancelled: Cancelled | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """`whisper.transcribe(model, audio, **options)`; blocks until the result is there.

        audio: waveform at 16 kHz, shape (samples,): float32, or int16 as `whisper.load_audio` reads it
            before it divides by 32,768
        on_progress(done_seconds, total_seconds): once with 0 when the work begins, then after each window
        on_segments(segments): after each window, with those now final
        cancelled(): asked while waiting and between windows

        Callbacks run on the engine's thread; an exception in one fails this call and no other.

        Raises TranscriptionCancelled if `cancelled()` was true, EngineClosedError if the engine is or
        gets closed, and whatever `whisper.transcribe` raises.
        """
        job = _Job(
            audio,
            {
                **options,
                "on_segments": on_segments,
                "fp16": self.model.device.type != "cpu",
            },
            on_progress,
            cancelled or _never,
        )
        with self._changed:
            if not self.alive:
                raise EngineClosedError("the engine is closed")
            self._jobs.append(job)
            self._changed.notify_all()
        return self._wait(job)

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(
                slots=1,
                slots_in_use=int(self._running is not None),
                windows_waiting=len(self._jobs),
                windows_done=self._windows_done,
                audio_seconds_done=self._audio_seconds_done,
                bytes_held=sum(
                    p.numel() * p.element_size() for p in self.model.parameters()
                ),
            )

    def close(self) -> None:
        """End at once: running and waiting calls raise EngineClosedError. Never blocks."""
        with self._changed:
            self._closed = True
            self._fail_all()
            self._changed.notify_all()

    def _wait(self, job: _Job) -> dict[str, Any]:
        while not wait([job.future], timeout=_CANCEL_POLL_S).done:
            if job.cancelled():
                with self._changed:
                    if job in self._jobs:
                        self._jobs.remove(job)
                        raise TranscriptionCancelled
        return job.future.result()

    def _work(self) -> None:
        try:
            while self._run_next():
                pass
        finally:
            # Also when something unforeseen ends the thread: nobody may wait for ever.
            with self._changed:
                self._closed = True
                self._fail_all()

    def _run_next(self) -> bool:
        """False when the engine is closed. Keeps nothing of the job: an idle engine holds no recording."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return False
            self._running = self._jobs.popleft()
        self._run(self._running)
        with self._changed:
            self._running = None
        return True

    def _run(self, job: _Job) -> None:
        torch.manual_seed(SEED)

        def on_progress(done: float, total: float) -> None:
            self._windows_done += done > 0
            if job.on_progress:
                job.on_progress(done, total)

        try:
            result = transcribe(
                self.model,
                job.audio,
                on_progress=on_progress,
                cancelled=lambda: self._closed or job.cancelled(),
                **job.options,
            )
        except Exception as error:  # noqa: BLE001 - it belongs to this caller alone
            self._finish(job, error)
        else:
            self._finish(job, result)

    def _finish(self, job: _Job, outcome: dict[str, Any] | Exception) -> None:
        with self._changed:
            if job.future.done():
                return  # close() has answered already
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                self._audio_seconds_done += job.audio.shape[-1] / SAMPLE_RATE
                job.future.set_result(outcome)

    def _fail_all(self) -> None:
        jobs = [*self._jobs, *([self._running] if self._running else [])]
        self._jobs.clear()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(EngineClosedError("the engine was closed"))


def _never() -> bool:
    return False
