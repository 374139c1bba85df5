"""Recordings of tests/audio as waveforms."""

import functools
import io
import wave

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio
from tests.support.app import AUDIO

_LONGEST_S = 60


@functools.cache
def pcm(name: str) -> np.ndarray:
    """A file of tests/audio: int16 at 16 kHz, shape (samples,)."""
    with (AUDIO / name).open("rb") as file:
        return decode_audio(file, _LONGEST_S).samples


def as_wav(*parts: np.ndarray) -> bytes:
    """A WAV file of waveforms like those of `pcm`, one after the other."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        writer.writeframes(np.concatenate(parts).tobytes())
    return file.getvalue()
