"""What was cut or is doubtful in a result, in the words that the caller reads."""

from typing import TYPE_CHECKING

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.contract.options import TranscriptionOptions

if TYPE_CHECKING:
    from deployments.engine import Engine


def warnings_of(
    options: TranscriptionOptions, engine: "Engine", audio: np.ndarray
) -> list[str]:
    """The warnings of a transcription.

    audio: waveform at 16 kHz, shape (samples,)
    """
    found = []
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
    return found
