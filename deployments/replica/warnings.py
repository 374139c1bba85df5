"""What was cut or is doubtful in a result, in the words that the caller reads."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.contract.options import TranscriptionOptions

# The first window, in which Whisper detects the language, has 3000 frames of 10 ms. Whisper's
# default for `no_speech_threshold` says above which probability a window is silent.
_WINDOW_FRAMES = 3000
_SILENT = 0.6

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
) -> list[str]:
    """A warning where the language was detected in a window without speech.

    probability: of the language; None where it was not detected
    segments: as `whisper.transcribe` gives them
    """
    # Clips that begin later do not include the first window.
    begins = min(options.clip_timestamps, default=0.0) * 100
    if probability is None or begins >= _WINDOW_FRAMES:
        return []
    first = segments[0] if segments else None
    # Whisper leaves out windows that it takes for silence.
    heard = first is not None and first["seek"] < _WINDOW_FRAMES
    if first is not None and heard and first["no_speech_prob"] <= _SILENT:
        return []
    warning = (
        f"The language '{language}' was detected in the first 30 s, where no speech was found:"
        " it is a guess, so name the language"
    )
    return [warning]
