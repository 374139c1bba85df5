"""OpenAI's long-form algorithm, `whisper.transcribe`, run unmodified and observed between its windows."""

import importlib.util
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE
from whisper.decoding import DecodingOptions, DecodingResult

from deployments.engine.tasks import Session
from deployments.engine.upstream.mel import Mel
from deployments.engine.upstream.timing import find_alignment

OnProgress = Callable[[float, float], None]
OnSegments = Callable[[list[dict[str, Any]]], None]


def _private(name: str) -> ModuleType:
    """A second instance of a module, whose globals can be replaced without touching the official one."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_timing = _private("whisper.timing")
vars(_timing)["find_alignment"] = find_alignment
_official = _private("whisper.transcribe")
vars(_official)["add_word_timestamps"] = _timing.add_word_timestamps
# `transcribe` is given the spectrogram instead of the waveform, as a `Mel`, which is no tensor. So the callers' threads
# compute and copy nothing: PyTorch starts no worker threads for them (`Engine` says why there must be no more), and
# only the engine's thread gives a GPU work.
vars(_official)["log_mel_spectrogram"] = lambda mel, n_mels, padding: mel
vars(_official)["pad_or_trim"] = Mel.padded
_TRANSCRIBE_CODE: CodeType = _official.transcribe.__code__


def transcribe(
    session: Session,
    audio: np.ndarray,
    *,
    on_progress: OnProgress | None = None,
    on_segments: OnSegments | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`whisper.transcribe` with the model behind `session`, and callbacks between windows.

    audio: waveform at 16 kHz, float32 or int16, shape (samples,)
    on_progress(done_seconds, total_seconds): once with 0 when the work begins, then after each window
    on_segments(segments): after each window, with those now final

    One argument is treated otherwise than upstream: a clip that ends after the recording ends with it.
    `whisper.transcribe` decodes the emptiness behind the end again and again, without moving on.
    """
    total = audio.shape[-1] / SAMPLE_RATE
    observer = _Observer(total, on_progress, on_segments)
    observer.report(0.0, [])
    if "clip_timestamps" in options:
        # The last whole frame, because Whisper would round up to one that does not exist.
        end = audio.shape[-1] // HOP_LENGTH / FRAMES_PER_SECOND
        options["clip_timestamps"] = _within(options["clip_timestamps"], end)
    result: dict[str, Any] = _official.transcribe(
        _StandIn(session, observer), session.mel(audio), **options
    )
    session.leave_window()
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
    ) -> None:
        self.total = total
        self.on_progress = on_progress
        self.on_segments = on_segments
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

    def look(self) -> None:
        """Upstream offers no callback; what is done so far stands in the variables of the running call."""
        frame = sys._getframe()
        while frame.f_code is not _TRANSCRIBE_CODE:
            assert frame.f_back is not None
            frame = frame.f_back
        self.report(frame.f_locals["time_offset"], frame.f_locals["all_segments"])


class _StandIn:
    """The model as one run of `transcribe` sees it."""

    def __init__(self, session: Session, observer: _Observer) -> None:
        self._session = session
        self._observer = observer
        self.dims = session.facts.dims
        self.device = session.facts.device
        self.is_multilingual = session.facts.is_multilingual
        self.num_languages = session.facts.num_languages
        self.attended_frames = session.attended_frames

    def detect_language(self, mel: Mel) -> tuple[None, dict[str, float]]:
        return None, self._session.detect_language(mel)

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult:
        window = self._session.window
        if window is not mel:
            if window is not None:
                self._session.leave_window()
            self._observer.look()
        return self._session.decode(mel, options)
