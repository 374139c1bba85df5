"""What was cut or is doubtful in a result, in the words that the caller reads."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Chunks, Span
from deployments.contract.options import TranscriptionOptions

# The first window, in which Whisper detects the language, has 3000 frames of 10 ms. Whisper's
# default for `no_speech_threshold` says above which probability a window is silent.
_WINDOW_FRAMES = 3000
_SILENT = 0.6
# The most cuts whose times are told.
_MAX_TOLD = 5

if TYPE_CHECKING:
    from deployments.engine import Engine


def warnings_of(
    options: TranscriptionOptions, engine: "Engine", audio: np.ndarray
) -> list[str]:
    """The warnings of a transcription.

    audio: waveform at 16 kHz, shape (samples,)
    """
    found = []
    if options.language_note is not None:
        found.append(options.language_note)
    if options.initial_prompt is not None:
        tokens = engine.count_prompt_tokens(options.initial_prompt)
        most = engine.max_prompt_tokens
        if tokens > most:
            found.append(
                f"initial_prompt has {tokens} tokens; Whisper used the last {most}"
            )
    if options.word_timestamps and options.task == "translate":
        found.append(
            "word_timestamps of a translation are not reliable:"
            " the words are not those that were spoken"
        )
    seconds = len(audio) / SAMPLE_RATE
    if max(options.clip_timestamps, default=0.0) > seconds:
        found.append(
            f"clip_timestamps go past the end of the recording, which is {seconds:.2f} s long"
        )
    return found + _odd_clips(options.clip_timestamps, seconds)


def _odd_clips(timestamps: list[float], seconds: float) -> list[str]:
    """Warnings for clips that are empty or not in order, which Whisper takes in an unexpected way.

    timestamps: start, end, start, ...; the last end may be left out
    """
    # Whisper counts in frames of 0.01 s.
    frames = [round(time * 100) for time in timestamps]
    last = max(1, round(seconds * 100))
    if len(frames) % 2:
        frames.append(last)
    clips = list(zip(frames[::2], frames[1::2], strict=True))
    found = []
    # A clip that begins behind the end of the recording has a warning already.
    empty = sum(end <= start <= last for start, end in clips)
    if empty:
        found.append(
            f"clip_timestamps: {empty} of {len(clips)} clips end where they start or before;"
            " Whisper left them out"
        )
    real = [(start, min(end, last)) for start, end in clips if start < min(end, last)]
    if any(after[0] < before[1] for before, after in itertools.pairwise(real)):
        found.append(
            "clip_timestamps overlap or go back; Whisper transcribed the clips as they are given,"
            " so text may come twice or out of order"
        )
    return found


def language_warnings(
    options: TranscriptionOptions,
    language: str,
    probability: float | None,
    segments: Sequence[Mapping[str, Any]],
    chunk: Span | None = None,
) -> list[str]:
    """A warning where the language was detected in a window without speech.

    probability: of the language; None where it was not detected
    segments: as `whisper.transcribe` gives them
    chunk: the first one, if the recording was cut into chunks
    """
    # Clips that begin later do not include the first window.
    begins = min(options.clip_timestamps, default=0.0) * 100
    if probability is None or begins >= _WINDOW_FRAMES:
        return []
    end, place = _WINDOW_FRAMES, "the first 30 s"
    if chunk is not None:
        end, place = chunk.end * 100 // SAMPLE_RATE, "the first chunk"
    first = segments[0] if segments else None
    # Whisper leaves out windows that it takes for silence.
    heard = first is not None and first["seek"] < end
    if first is not None and heard and first["no_speech_prob"] <= _SILENT:
        return []
    warning = (
        f"The language '{language}' was detected in {place}, where no speech was found:"
        " it is a guess, so name the language"
    )
    return [warning]


def chunk_warnings(chunks: Chunks) -> list[str]:
    """Warnings where no speech was found, and where speech was cut."""
    if not chunks.spans:
        warning = (
            "chunking_strategy: no speech was found, so nothing was transcribed; a lower threshold"
            " finds more"
        )
        return [warning]
    if not chunks.cuts:
        return []
    times = [f"{cut / SAMPLE_RATE:.2f}" for cut in chunks.cuts[:_MAX_TOLD]]
    more = len(chunks.cuts) - len(times)
    places = ", ".join(times) + (f" and {more} more" if more else "")
    warning = (
        "chunking_strategy: speech went on for more than 30 s without a pause, so it was cut at its"
        f" quietest place, in second {places}; words there may be lost or come twice"
    )
    return [warning]
