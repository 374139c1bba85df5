"""Recordings of tests/audio as waveforms."""

import functools

import numpy as np

from deployments.audio.decode import decode_audio
from tests.support.app import AUDIO

_LONGEST_S = 60


@functools.cache
def pcm(name: str) -> np.ndarray:
    """A file of tests/audio: int16 at 16 kHz, shape (samples,)."""
    with (AUDIO / name).open("rb") as file:
        return decode_audio(file, _LONGEST_S).samples
