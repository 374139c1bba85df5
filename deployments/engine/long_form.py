"""OpenAI's long-form algorithm, `whisper.transcribe`, run unmodified and observed between its windows."""

import importlib.util
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from deployments.engine.mel import log_mel_spectrogram

OnProgress = Callable[[float, float], None]
OnSegments = Callable[[list[dict[str, Any]]], None]
Cancelled = Callable[[], bool]


class TranscriptionCancelled(Exception):
    """`cancelled()` was true; nothing more of this recording is decoded."""


def _private_transcribe_module() -> ModuleType:
    """A second instance of `whisper/transcribe.py`, whose globals can be replaced without touching the official one."""
    spec = importlib.util.find_spec("whisper.transcribe")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_official = _private_transcribe_module()
vars(_official)["log_mel_spectrogram"] = log_mel_spectrogram
_TRANSCRIBE_CODE: CodeType = _official.transcribe.__code__


def transcribe(
    model: Whisper,
    audio: np.ndarray,
    *,
    on_progress: OnProgress | None = None,
    on_segments: OnSegments | None = None,
    cancelled: Cancelled | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`whisper.transcribe(model, audio, **options)`, with callbacks between windows.

    audio: waveform at 16 kHz, float32 or int16, shape (samples,)
    on_progress(done_seconds, total_seconds): once with 0 when the work begins, then after each window
    on_segments(segments): after each window, with those now final
    cancelled(): asked before each decode; true raises TranscriptionCancelled

    One argument is treated otherwise than upstream: a clip that ends after the recording ends with it.
    `whisper.transcribe` decodes the emptiness behind the end again and again, without moving on.
    """
    total = audio.shape[-1] / SAMPLE_RATE
    observer = _Observer(total, on_progress, on_segments, cancelled)
    observer.report(0.0, [])
    if "clip_timestamps" in options:
        # The last whole frame, because Whisper would round up to one that does not exist.
        end = audio.shape[-1] // HOP_LENGTH / FRAMES_PER_SECOND
        options["clip_timestamps"] = _within(options["clip_timestamps"], end)
    result: dict[str, Any] = _official.transcribe(
        _ObservedModel(model, observer), audio, **options
    )
    observer.report(total, result["segments"])
    return result


def _within(clip_timestamps: str | list[float], end: float) -> list[float]:
    if isinstance(clip_timestamps, str):
        clip_timestamps = [float(t) for t in clip_timestamps.split(",") if t]
    return [min(t, end) for t in clip_timestamps]


class _Observer:
    """Passes on what one run of `transcribe` has finished since the last time."""

    def __init__(
        self,
        total: float,
        on_progress: OnProgress | None,
        on_segments: OnSegments | None,
        cancelled: Cancelled | None,
    ) -> None:
        self.total = total
        self.on_progress = on_progress
        self.on_segments = on_segments
        self.cancelled = cancelled
        self.done = -1.0
        self.segments_passed_on = 0

    def report(self, done: float, segments: list[dict[str, Any]]) -> None:
        new = segments[self.segments_passed_on :]
        self.segments_passed_on = len(segments)
        if new and self.on_segments:
            self.on_segments(new)
        # A window that falls back to the next temperature is decoded again without having moved on.
        if done > self.done and self.on_progress:
            self.on_progress(min(done, self.total), self.total)
        self.done = max(done, self.done)

    def before_decode(self) -> None:
        if self.cancelled and self.cancelled():
            raise TranscriptionCancelled
        # Upstream offers no callback; what is done so far stands in the variables of the running call.
        frame = sys._getframe()
        while frame.f_code is not _TRANSCRIBE_CODE:
            assert frame.f_back is not None
            frame = frame.f_back
        self.report(frame.f_locals["time_offset"], frame.f_locals["all_segments"])


class _ObservedModel:
    """The model as one run of `transcribe` sees it: itself, but for a look around before each decode."""

    def __init__(self, model: Whisper, observer: _Observer) -> None:
        self._model = model
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, mel: Tensor, tokens: Tensor) -> Tensor:
        return self._model(mel, tokens)

    def decode(self, mel: Tensor, options: DecodingOptions) -> DecodingResult:
        self._observer.before_decode()
        result: DecodingResult = self._model.decode(mel, options)
        return result
