"""One request's work in an engine, from its waveform to its transcript. Blocks its thread.

This module imports the engine, which takes seconds: a replica imports it when it has one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Chunks, Span, SpeechCancelled, chunks_of
from deployments.contract.answer import Chunk, segments_of, words_of
from deployments.contract.chunking import ServerVad
from deployments.contract.errors import DecodingLimitError
from deployments.contract.options import TranscriptionOptions
from deployments.engine import (
    DecodingLimitExceeded,
    Engine,
    TranscriptionCancelled,
    Usage,
)
from deployments.replica.chunked import transcribe_chunks
from deployments.replica.slot_shares import SlotShares
from deployments.replica.transcript import Transcript
from deployments.replica.warnings import (
    chunk_warnings,
    language_warnings,
    warnings_of,
)

# What Whisper decodes at once. A shorter recording takes as long as one of this length.
_WINDOW_S = 30.0


@dataclass(frozen=True)
class LimitedEngine:
    """An engine whose time is limited by the length of the audio.

    max_decode_rate: seconds of the engine's time for a second of audio
    in_chunks: whether the audio of each call is a chunk of a recording
    """

    engine: Engine
    max_decode_rate: float
    in_chunks: bool = False

    def transcribe(self, audio: np.ndarray, **options: Any) -> dict[str, Any]:
        """`Engine.transcribe`. Raises DecodingLimitError."""
        return self._limited(self.engine.transcribe, audio, options)

    def detect_language(
        self, audio: np.ndarray, **options: Any
    ) -> tuple[str, float | None]:
        """`Engine.detect_language`. Raises DecodingLimitError."""
        return self._limited(self.engine.detect_language, audio, options)

    def _limited(
        self, work: Callable[..., Any], audio: np.ndarray, options: dict[str, Any]
    ) -> Any:
        seconds = len(audio) / SAMPLE_RATE
        limit = self.max_decode_rate * max(seconds, _WINDOW_S)
        try:
            return work(audio, max_busy_s=limit, **options)
        except DecodingLimitExceeded:
            audio_in_words = f"{seconds:.1f} s of audio"
            advice = "for fewer or longer clips, "
            if self.in_chunks:
                audio_in_words, advice = f"a chunk of {seconds:.1f} s", ""
            raise DecodingLimitError(
                f"Decoding took more than {limit:.0f} s, the limit for {audio_in_words}"
                f" (max_decode_s_per_audio_s): ask {advice}for a larger"
                " temperature_increment_on_fallback, for a lower best_of, beam_size or patience,"
                " or for fewer suppress_tokens"
            ) from None


def transcribe(
    engine: LimitedEngine,
    shares: SlotShares,
    audio: np.ndarray,
    options: TranscriptionOptions,
    device: Literal["cuda", "cpu"],
    **callbacks: Any,
) -> tuple[Transcript, Usage]:
    """What a request asks of its waveform, whole or in chunks, and what that took of the engine.

    audio: waveform at 16 kHz, shape (samples,)
    callbacks: `cancelled`, `on_start`, `on_progress` and `on_segments` of `Engine.transcribe`

    Raises DecodingLimitError, and what `Engine.transcribe` raises.
    """
    strategy = options.chunking_strategy
    duration_s = len(audio) / SAMPLE_RATE
    started = time.monotonic()
    chunks = None
    if strategy is None:
        with shares.whole():
            result, usage = _whole(engine, audio, options, callbacks)
    else:
        chunks = _chunks(audio, strategy, callbacks["cancelled"])
        if chunks.spans:
            limited = replace(engine, in_chunks=True)
            with shares.chunked(engine.engine.stats().slots) as share:
                result, usage = transcribe_chunks(
                    limited.transcribe,
                    limited.detect_language,
                    audio,
                    chunks.spans,
                    share,
                    **callbacks,
                    **options.whisper_options(),
                )
        else:
            result, usage = _nothing(engine, options)
            if on_progress := callbacks.get("on_progress"):
                on_progress(duration_s, duration_s)
    seconds = time.monotonic() - started
    segments = segments_of(result["segments"], options.word_timestamps)
    warnings = warnings_of(options, engine.engine, audio)
    if chunks is None or chunks.spans:
        warnings += language_warnings(
            options,
            result["language"],
            usage.language_probability,
            result["segments"],
            None if chunks is None else chunks.spans[0],
        )
    if chunks is not None:
        warnings += chunk_warnings(chunks)
    transcript = Transcript(
        segments=segments,
        words=words_of(segments) if options.word_timestamps else None,
        text=result["text"],
        language=result["language"],
        language_probability=usage.language_probability,
        device=device,
        queue_s=usage.queue_s,
        transcribe_s=seconds - usage.queue_s,
        batch_windows=usage.occupancy,
        warnings=warnings,
        chunks=None if chunks is None else [*map(_in_seconds, chunks.spans)],
    )
    return transcript, usage


def _whole(
    engine: LimitedEngine,
    audio: np.ndarray,
    options: TranscriptionOptions,
    callbacks: dict[str, Any],
) -> tuple[dict[str, Any], Usage]:
    used: list[Usage] = []
    result = engine.transcribe(
        audio, on_usage=used.append, **callbacks, **options.whisper_options()
    )
    [usage] = used
    return result, usage


def _chunks(
    audio: np.ndarray, strategy: ServerVad, cancelled: Callable[[], bool]
) -> Chunks:
    try:
        return chunks_of(
            audio,
            threshold=strategy.threshold,
            padding_ms=strategy.prefix_padding_ms,
            silence_ms=strategy.silence_duration_ms,
            cancelled=cancelled,
        )
    except SpeechCancelled:
        raise TranscriptionCancelled from None


def _nothing(
    engine: LimitedEngine, options: TranscriptionOptions
) -> tuple[dict[str, Any], Usage]:
    """The result where there is no speech: no language either, unless it is known."""
    english = None if engine.engine.facts.is_multilingual else "en"
    language = options.language_code or english
    result: dict[str, Any] = {"text": "", "segments": [], "language": language}
    return result, Usage(queue_s=0.0, windows=0, occupancy=0.0)


def _in_seconds(span: Span) -> Chunk:
    return Chunk(start=span.start / SAMPLE_RATE, end=span.end / SAMPLE_RATE)
