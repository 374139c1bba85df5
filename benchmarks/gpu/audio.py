"""The recordings of a pack, which are stored decoded: int16 at 16 kHz."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from whisper.audio import SAMPLE_RATE

FILE = "audio.npz"


@dataclass(frozen=True, eq=False)
class Recording:
    """pcm: int16 at 16 kHz, shape (samples,)"""

    name: str
    pcm: npt.NDArray[np.int16]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    @property
    def wave(self) -> npt.NDArray[np.float32]:
        """As `whisper.load_audio` gives it."""
        return self.pcm.astype(np.float32) / np.float32(32768)


def recordings(pack: Path) -> list[Recording]:
    with np.load(pack / FILE) as stored:
        return [Recording(name, stored[name]) for name in stored.files]


def noise(seconds: float, seed: int) -> Recording:
    generator = np.random.default_rng(seed)
    samples = generator.normal(size=round(seconds * SAMPLE_RATE)) * 3000
    return Recording(f"noise {seed}", samples.astype(np.int16))
