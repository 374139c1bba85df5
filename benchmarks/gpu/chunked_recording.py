"""The long recording of the phase `chunks`: packed speech that is joined again, and its chunks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from whisper.audio import SAMPLE_RATE

from benchmarks.gpu.audio import Recording, recordings
from deployments.audio.speech import Span

FILE = "chunks.json"
# Speech is added until the recording is this long.
SECONDS = 600
_PAUSE_S = (0.3, 2)
_NOISE = 20  # of 32,768


@dataclass(frozen=True, eq=False)
class ChunkedRecording:
    """pcm: int16 at 16 kHz, shape (samples,)

    spans: its chunks
    """

    pcm: npt.NDArray[np.int16]
    spans: Sequence[Span]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def beginning(self, chunks: int) -> "ChunkedRecording":
        """The recording up to the end of its first so many chunks."""
        spans = self.spans[:chunks]
        return ChunkedRecording(self.pcm[: spans[-1].end], spans)


def joined(speech: Sequence[npt.NDArray[np.int16]]) -> npt.NDArray[np.int16]:
    """All of the speech again and again, each time in another order, with pauses of low noise.

    The result is the same on every machine: NumPy never changes the numbers of RandomState.
    """
    generator = np.random.RandomState(0)
    shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in _PAUSE_S)
    parts: list[npt.NDArray[np.int16]] = []
    order: list[int] = []
    samples = 0
    while samples < SECONDS * SAMPLE_RATE:
        order = order or generator.permutation(len(speech)).tolist()
        pause = generator.randint(shortest, longest + 1)
        noise = generator.randint(-_NOISE, _NOISE + 1, pause).astype(np.int16)
        parts += [speech[order.pop()], noise]
        samples += sum(map(len, parts[-2:]))
    return np.concatenate(parts)


def write(pack: Path, names: Sequence[str], spans: Sequence[Span]) -> None:
    """names: the packed speech that is joined"""
    pairs = [(span.start, span.end) for span in spans]
    (pack / FILE).write_text(json.dumps({"names": names, "spans": pairs}))


def read(pack: Path) -> tuple[ChunkedRecording, list[Recording]]:
    """The long recording, and those that are joined in it."""
    stored = json.loads((pack / FILE).read_text())
    packed = {recording.name: recording for recording in recordings(pack)}
    speech = [packed[name] for name in stored["names"]]
    pcm = joined([recording.pcm for recording in speech])
    return ChunkedRecording(pcm, [Span(*pair) for pair in stored["spans"]]), speech
