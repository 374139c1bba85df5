"""One recording as several transcriptions that decode side by side.

Each chunk is transcribed exactly as `whisper.transcribe` transcribes that piece of audio alone, in
the language that is detected in the first of them. The results are put together as those of one
recording: in its order, with its times, and with one numbering of its segments.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import STEP, Span
from deployments.engine import TranscriptionCancelled, Usage
from deployments.engine.upstream.transcribe import OnProgress, OnSegments
from deployments.replica.slot_shares import Share

# All of Whisper's times are multiples of `STEP`, 0.01 s.
_DIGITS = 2


class Recording:
    """The results of a recording's chunks as they come, in any order, from any thread.

    spans: the chunks
    samples: length of the recording
    on_progress, on_segments: as those of `Engine.transcribe`, but no progress of 0 is told
    segments: what is final, in the order of the recording
    """

    def __init__(
        self,
        spans: Sequence[Span],
        samples: int,
        on_progress: OnProgress | None,
        on_segments: OnSegments | None,
    ) -> None:
        self.segments: list[dict[str, Any]] = []
        self._spans = spans
        self._total = samples / SAMPLE_RATE
        # In samples, whose sum is exact.
        self._silence = samples - sum(map(len, spans))
        self._on_progress = on_progress
        self._on_segments = on_segments
        self._lock = threading.Lock()
        self._next = 0  # the first chunk that has not ended
        self._ended: set[int] = set()
        self._waiting: dict[int, list[dict[str, Any]]] = {}
        self._done = [0] * len(spans)

    def progress(self, chunk: int, done: float) -> None:
        """So many seconds of a chunk are done. Silence between chunks counts as done."""
        with self._lock:
            self._done[chunk] = round(done * SAMPLE_RATE)
            if done and self._on_progress:
                samples = self._silence + sum(self._done)
                self._on_progress(samples / SAMPLE_RATE, self._total)

    def add(self, chunk: int, segments: list[dict[str, Any]]) -> None:
        """Segments of a chunk, with the chunk's own times, that have become final."""
        with self._lock:
            self._waiting.setdefault(chunk, []).extend(segments)
            self._give()

    def end(self, chunk: int) -> None:
        """A chunk is done: those after it need not wait for it any more."""
        with self._lock:
            self._ended.add(chunk)
            self._give()

    def _give(self) -> None:
        final: list[dict[str, Any]] = []
        while True:
            for segment in self._waiting.pop(self._next, []):
                number = len(self.segments) + len(final)
                final.append(_placed(segment, self._spans[self._next].start, number))
            if self._next not in self._ended:
                break
            self._next += 1
        self.segments += final
        if final and self._on_segments:
            self._on_segments(final)


class Start:
    """Notes when the work on any of the chunks begins."""

    def __init__(self, on_start: Callable[[], None] | None) -> None:
        self._on_start = on_start
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.waited_s: float | None = None

    def __call__(self) -> None:
        with self._lock:
            if self.waited_s is not None:
                return
            self.waited_s = time.monotonic() - self._began
        if self._on_start is not None:
            self._on_start()


def transcribe_chunks(
    transcribe: Callable[..., dict[str, Any]],
    detect_language: Callable[..., tuple[str, float | None]],
    audio: np.ndarray,
    spans: Sequence[Span],
    share: Share,
    *,
    language: str | None,
    cancelled: Callable[[], bool],
    on_start: Callable[[], None] | None = None,
    on_progress: OnProgress | None = None,
    on_segments: OnSegments | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Usage]:
    """The result of `whisper.transcribe` for a recording, put together from those of its chunks.

    transcribe, detect_language: methods of an engine
    audio: waveform at 16 kHz, shape (samples,)
    spans: at least one; each begins on a multiple of 10 ms
    share: of the engine's slots
    language: None: that of the first chunk

    The first failure of a chunk ends the work on all others, and is raised when they have ended.
    The usage's `queue_s` is the time until the work on the first chunk began.
    """
    failed = threading.Event()
    start = Start(on_start)
    recording = Recording(spans, len(audio), on_progress, on_segments)
    usages: list[Usage] = []

    def over() -> bool:
        return failed.is_set() or cancelled()

    def work(chunk: int) -> str:
        span = spans[chunk]
        try:
            result = transcribe(
                audio[span.start : span.end],
                language=language,
                cancelled=over,
                on_start=start,
                on_progress=lambda done, _: recording.progress(chunk, done),
                on_segments=lambda segments: recording.add(chunk, segments),
                on_usage=usages.append,
                **options,
            )
            recording.end(chunk)
        except BaseException:
            failed.set()
            raise
        finally:
            share.give_back()
        return str(result["text"])

    probability = None
    if language is None:
        first = spans[0]
        language, probability = detect_language(
            audio[first.start : first.end], on_start=start, cancelled=cancelled
        )
    works: list[Future[str]] = []
    try:
        with ThreadPoolExecutor(len(spans), thread_name_prefix="chunk") as threads:
            try:
                for chunk in range(len(spans)):
                    if not share.take(over):
                        break
                    works.append(threads.submit(work, chunk))
            except BaseException:
                failed.set()
                raise
        _raise_first_failure(works)
        if len(works) < len(spans):
            raise TranscriptionCancelled
        text = "".join(one.result() for one in works)
    finally:
        # A failed work refers to its error, whose traceback refers to this function and with it to
        # the recording, which would stay in memory until the garbage collector runs.
        works.clear()
    result = {"text": text, "segments": recording.segments, "language": language}
    return result, _together(usages, start.waited_s or 0.0, probability)


def _placed(segment: dict[str, Any], start: int, number: int) -> dict[str, Any]:
    """A segment with its number and its times in the whole recording.

    start: of its chunk, in samples
    """

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        times = {
            key: round(part[key] + start / SAMPLE_RATE, _DIGITS)
            for key in ("start", "end")
        }
        return part | times

    placed = moved(segment) | {"id": number, "seek": segment["seek"] + start // STEP}
    if "words" in segment:
        placed["words"] = [moved(word) for word in segment["words"]]
    return placed


def _raise_first_failure(works: Sequence[Future[str]]) -> None:
    """The cause comes before the cancellations that it has led to."""
    # No variable of this function may refer to an error that is raised; see `transcribe_chunks`.
    errors = [
        error for error in (work.exception() for work in works) if error is not None
    ]
    errors.sort(key=lambda error: isinstance(error, TranscriptionCancelled))
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()


def _together(
    usages: Sequence[Usage], queue_s: float, probability: float | None
) -> Usage:
    steps = sum(usage.steps for usage in usages)
    windows_in_steps = sum(usage.occupancy * usage.steps for usage in usages)
    return Usage(
        queue_s=queue_s,
        windows=sum(usage.windows for usage in usages),
        occupancy=windows_in_steps / steps if steps else 0.0,
        language_probability=probability,
        busy_s=sum(usage.busy_s for usage in usages),
        steps=steps,
    )
