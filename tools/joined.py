"""Long recordings, joined from the short ones of a folder.

Between utterances there are pauses, and now and then a stretch of music, noise or silence. What was
said, and where nobody speaks, is known by construction. The same seed gives the same samples.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio
from deployments.audio.speech import Span

Pcm = npt.NDArray[np.int16]
Item = TypeVar("Item")

PAUSE_S = (0.3, 3.0)
STRETCH_S = (10.0, 60.0)
# Root mean square of the noise in pauses and silence: no microphone delivers zeros.
_FLOOR = 32768 * 10 ** (-65 / 20)
_LONGEST_S = 4 * 3600


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech of one language, or of several where `language` is no code.

    pcm: int16 at 16 kHz, shape (samples,)
    """

    pcm: Pcm
    text: str
    language: str


@dataclass(frozen=True)
class Spoken:
    """An utterance's place in a joined recording."""

    span: Span
    text: str


@dataclass(frozen=True, eq=False)
class Joined:
    """A joined recording.

    pcm: int16 at 16 kHz, shape (samples,)
    spoken: the utterances, in order
    speechless: the stretches of music, noise or silence; pauses are not among them
    """

    pcm: Pcm
    spoken: list[Spoken]
    speechless: list[Span]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    @property
    def text(self) -> str:
        return " ".join(one.text for one in self.spoken)

    def beginning(self, seconds: float) -> "Joined":
        """As many whole utterances as fit into this time, and what comes before and between."""
        spoken = [one for one in self.spoken if one.span.end <= seconds * SAMPLE_RATE]
        end = spoken[-1].span.end if spoken else 0
        speechless = [span for span in self.speechless if span.end <= end]
        return Joined(self.pcm[:end], spoken, speechless)


def entries_of(manifest: Path) -> list[dict[str, Any]]:
    """A manifest's entries of recordings that can be decoded; `file` is where each one is.

    manifest: a list of objects with `path` or `file` (beside the manifest), or the folder of a
        manifest.json
    """
    if manifest.is_dir():
        manifest /= "manifest.json"
    return [
        entry | {"file": manifest.parent / (entry.get("path") or entry["file"])}
        for entry in json.loads(manifest.read_text())
        if entry.get("decodes", True)
    ]


def is_speech(entry: dict[str, Any]) -> bool:
    return entry.get("kind", "speech") == "speech" and bool(entry.get("language"))


def utterances_of(entries: Sequence[dict[str, Any]]) -> list[Utterance]:
    """The speech of these entries. An entry with `segments` is as many utterances."""
    return list(itertools.chain.from_iterable(map(_utterances, entries)))


def sounds_of(entries: Sequence[dict[str, Any]]) -> list[Pcm]:
    """The recordings that hold no speech (`expected_empty`), without those that are silent."""
    sounds = [_decoded(e["file"]) for e in entries if e.get("expected_empty")]
    return [sound for sound in sounds if _loudness(sound) > 2 * _FLOOR]


def join(
    utterances: Sequence[Utterance],
    sounds: Sequence[Pcm],
    seconds: float,
    *,
    speechless: float,
    seed: int,
) -> Joined:
    """Join utterances, each as often as any other, until the next does not fit any more.

    sounds: played over and over in the stretches without speech, in turn with near silence
    speechless: their share of the whole; they lie evenly between the utterances

    Raises ValueError where no utterance fits.
    """
    random = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    words = _shuffled_again_and_again(utterances, random)
    backgrounds = _shuffled_again_and_again([None, *sounds], random)
    pieces: list[Pcm] = []
    spoken: list[Spoken] = []
    stretches: list[Span] = []
    position = empty = 0
    stretch = _stretch(next(backgrounds), random)
    while True:
        utterance = next(words)
        pause = _noise(_between(PAUSE_S, random), random)
        end = position + len(pause) + len(utterance.pcm)
        # A stretch as soon as it does more good than harm to their share, if it still fits.
        wanted = empty + len(stretch) / 2 <= speechless * (position + len(stretch))
        if wanted and end + len(stretch) <= samples:
            stretches.append(Span(position, position + len(stretch)))
            pieces.append(stretch)
            position, end = stretches[-1].end, end + len(stretch)
            empty += len(stretch)
            stretch = _stretch(next(backgrounds), random)
        if end > samples:
            break
        pieces += [pause, utterance.pcm]
        spoken.append(Spoken(Span(position + len(pause), end), utterance.text))
        position = end
    if not spoken:
        raise ValueError(f"no utterance fits into {seconds:.1f} s")
    return Joined(np.concatenate(pieces), spoken, stretches)


def _utterances(entry: dict[str, Any]) -> Iterator[Utterance]:
    pcm = _decoded(entry["file"])
    whole = {
        "start": 0.0,
        "end": len(pcm) / SAMPLE_RATE,
        "text": entry.get("reference") or entry.get("text") or "",
    }
    for part in entry.get("segments") or [whole]:
        start, end = (round(part[key] * SAMPLE_RATE) for key in ("start", "end"))
        language = part.get("language", entry["language"])
        yield Utterance(pcm[start:end], part["text"], language)


def _decoded(path: Path) -> Pcm:
    with path.open("rb") as file:
        return decode_audio(file, _LONGEST_S).samples


def _shuffled_again_and_again(
    items: Sequence[Item], random: np.random.Generator
) -> Iterator[Item]:
    while True:
        for index in random.permutation(len(items)):
            yield items[index]


def _between(limits: tuple[float, float], random: np.random.Generator) -> int:
    return round(random.uniform(*limits) * SAMPLE_RATE)


def _stretch(sound: Pcm | None, random: np.random.Generator) -> Pcm:
    noise = _noise(_between(STRETCH_S, random), random)
    if sound is None:
        return noise
    loud = np.resize(sound, len(noise)).astype(np.int32) + noise
    return loud.clip(-32768, 32767).astype(np.int16)


def _noise(samples: int, random: np.random.Generator) -> Pcm:
    return random.normal(0, _FLOOR, samples).round().astype(np.int16)


def _loudness(pcm: Pcm) -> float:
    return float(np.sqrt(np.square(pcm.astype(np.float64)).mean())) if len(pcm) else 0.0
