"""OpenAI's long-form algorithm, `whisper.transcribe`, run unmodified and observed.

The engine leans on these insides of `whisper.transcribe`: the names that are replaced in a private
copy of the module, and two local variables of its function. tests/engine/upstream names them all.
"""

import importlib.util
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, Protocol

import numpy as np
from whisper.audio import FRAMES_PER_SECOND, HOP_LENGTH, N_FRAMES, SAMPLE_RATE
from whisper.decoding import DecodingOptions, DecodingResult

from deployments.engine.upstream.log_mel import Mel
from deployments.engine.upstream.model_facts import ModelFacts
from deployments.engine.upstream.timing import Aligner, find_alignment

OnProgress = Callable[[float, float], None]
OnSegments = Callable[[list[dict[str, Any]]], None]


class Model(Aligner, Protocol):
    """A model for one run of `transcribe`, which holds one window at a time."""

    facts: ModelFacts

    @property
    def window(self) -> Mel | None:
        """The window that was decoded last, until it is left."""
        ...

    def log_mel(self, audio: np.ndarray) -> Mel:
        """The spectrogram of a whole recording with 30 s of silence after it."""
        ...

    def detect_language(self, mel: Mel) -> dict[str, float]:
        """The probability of each language, by its code."""
        ...

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult: ...

    def leave_window(self) -> None:
        """Nothing more is asked about the window."""
        ...


def private_copy(name: str, **replaced: Any) -> ModuleType:
    """A second instance of a module with other globals; the official instance is not touched."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = replaced.keys() - vars(module).keys()
    if missing:
        raise ImportError(f"{name} has no {', '.join(sorted(missing))}")
    vars(module).update(replaced)
    return module


# At import, `whisper.timing` and `whisper.transcribe` are loaded a second time, for the engine
# alone.
TIMING = private_copy("whisper.timing", find_alignment=find_alignment)
# `transcribe` gets a `Mel` where it expects a waveform, and handles it like a tensor. So the
# callers' threads compute and copy nothing: PyTorch starts no worker threads for them, which would
# slow the engine's thread down, and only the engine's thread gives a GPU work.
OFFICIAL = private_copy(
    "whisper.transcribe",
    add_word_timestamps=TIMING.add_word_timestamps,
    log_mel_spectrogram=lambda mel, n_mels, padding: mel,
    pad_or_trim=Mel.padded,
)
_TRANSCRIBE_CODE: CodeType = OFFICIAL.transcribe.__code__
# `transcribe` has no callback. What it has done so far is in these local variables.
SECONDS_DONE, SEGMENTS_DONE = "time_offset", "all_segments"
_unknown = {SECONDS_DONE, SEGMENTS_DONE} - {*_TRANSCRIBE_CODE.co_varnames}
if _unknown:
    raise ImportError(
        f"whisper.transcribe has no local variable {', '.join(sorted(_unknown))}"
    )


def transcribe(
    model: Model,
    audio: np.ndarray,
    *,
    on_progress: OnProgress | None = None,
    on_segments: OnSegments | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`whisper.transcribe` with callbacks between windows.

    audio: waveform at 16 kHz, float32 or int16, shape (samples,)
    on_progress(done_seconds, total_seconds): called once with 0 at the start, then after each
        window
    on_segments(segments): called after each window with the segments that have become final

    Raises what `whisper.transcribe`, the model and the callbacks raise.

    One argument is treated differently: a clip that ends after the recording ends with it.
    `whisper.transcribe` would decode the silence after the end again and again without advancing.
    """
    total = audio.shape[-1] / SAMPLE_RATE
    observer = _Observer(total, on_progress, on_segments)
    observer.report(0.0, [])
    if "clip_timestamps" in options:
        # The last whole frame: Whisper would round the end up to a frame that does not exist.
        end = audio.shape[-1] // HOP_LENGTH / FRAMES_PER_SECOND
        options["clip_timestamps"] = _within(options["clip_timestamps"], end)
    result: dict[str, Any] = OFFICIAL.transcribe(
        _StandIn(model, observer), model.log_mel(audio), **options
    )
    model.leave_window()
    observer.report(total, result["segments"])
    return result


def detect_language(model: Model, audio: np.ndarray) -> tuple[str, float | None]:
    """The language that `whisper.transcribe` would find in a recording, and its probability.

    The first 30 s decide. For a model that knows only English it is English, with None as its
    probability.

    audio: waveform at 16 kHz, float32 or int16, shape (samples,)
    """
    if not model.facts.is_multilingual:
        return "en", None
    window = Mel.padded(model.log_mel(audio), N_FRAMES)
    probabilities = model.detect_language(window)
    model.leave_window()
    language = max(probabilities, key=probabilities.__getitem__)
    return language, probabilities[language]


def _within(clip_timestamps: str | list[float], end: float) -> list[float]:
    if isinstance(clip_timestamps, str):
        clip_timestamps = [float(t) for t in clip_timestamps.split(",") if t]
    return [min(t, end) for t in clip_timestamps]


class _Observer:
    """Tells the callbacks what one run of `transcribe` has finished since the last report.

    total: seconds of the recording
    """

    def __init__(
        self,
        total: float,
        on_progress: OnProgress | None,
        on_segments: OnSegments | None,
    ) -> None:
        self._total = total
        self._on_progress = on_progress
        self._on_segments = on_segments
        self._done = -1.0
        self._segments_reported = 0

    def report(self, done: float, segments: list[dict[str, Any]]) -> None:
        new = segments[self._segments_reported :]
        self._segments_reported = len(segments)
        if new and self._on_segments:
            self._on_segments(new)
        # Clips may be in any order, but progress never goes back.
        if done > self._done and self._on_progress:
            self._on_progress(min(done, self._total), self._total)
        self._done = max(done, self._done)

    def look(self) -> None:
        """Read what is done from the variables of the running `transcribe`, which has called us."""
        frame = sys._getframe()
        while frame.f_code is not _TRANSCRIBE_CODE:
            assert frame.f_back is not None
            frame = frame.f_back
        done = frame.f_locals
        self.report(done[SECONDS_DONE], done[SEGMENTS_DONE])


class _StandIn:
    """A model with the attributes and methods of `whisper.model.Whisper` that `transcribe` uses."""

    def __init__(self, model: Model, observer: _Observer) -> None:
        self._model = model
        self._observer = observer
        self.dims = model.facts.dims
        self.device = model.facts.device
        self.is_multilingual = model.facts.is_multilingual
        self.num_languages = model.facts.num_languages
        self.attended_frames = model.attended_frames

    def detect_language(self, mel: Mel) -> tuple[None, dict[str, float]]:
        return None, self._model.detect_language(mel)

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult:
        # The same window again means another temperature.
        window = self._model.window
        if window is not mel:
            if window is not None:
                self._model.leave_window()
            self._observer.look()
        return self._model.decode(mel, options)
