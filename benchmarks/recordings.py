"""The recordings of a benchmark, decoded before anything is timed."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio

SHORTEST_S, LONGEST_S = 8, 70
IN_THE_REPOSITORY = Path(__file__).parent.parent / "tests" / "audio"
_MAX_S = 4 * 3600


@dataclass(frozen=True, eq=False)
class Recording:
    """A decoded recording.

    pcm: int16 at 16 kHz, shape (samples,)
    wave: the same samples between -1 and 1, as `whisper.load_audio` gives them
    """

    name: str
    pcm: npt.NDArray[np.int16]
    wave: npt.NDArray[np.float32]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def beginning(self, seconds: float) -> "Recording":
        samples = round(seconds * SAMPLE_RATE)
        return Recording(self.name, self.pcm[:samples], self.wave[:samples])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", nargs="*", type=Path, metavar="RECORDING")
    parser.add_argument(
        "--manifest", type=Path, help="file, or folder of a manifest.json"
    )
    parser.add_argument(
        "--seconds", type=float, default=300, help="the most to take of the manifest"
    )


def chosen(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    shortest_s: float = SHORTEST_S,
    longest_s: float = LONGEST_S,
) -> list[Path]:
    """The recordings that the arguments ask for. Of a manifest, only speech of this length counts.

    Ends the program with a message where there are none.
    """
    if arguments.recordings and arguments.manifest:
        parser.error("either recordings or --manifest")
    try:
        paths: list[Path] = arguments.recordings or listed_in(
            arguments.manifest or IN_THE_REPOSITORY,
            arguments.seconds,
            shortest_s,
            longest_s,
        )
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    if not paths:
        parser.error("the manifest lists no fitting speech")
    for path in paths:
        if not path.is_file():
            parser.error(f"{path} is no file")
    return paths


def listed_in(
    manifest: Path,
    seconds: float,
    shortest_s: float = SHORTEST_S,
    longest_s: float = LONGEST_S,
) -> list[Path]:
    """Speech of this length in the manifest's order, until one more would exceed `seconds`.

    manifest: a list of objects with `path` or `file` (beside the manifest), `duration_s` or
        `seconds`, and, where the folder holds more than speech, `kind` and `decodes`; or the folder
        of a manifest.json
    """
    if manifest.is_dir():
        manifest /= "manifest.json"
    paths = []
    left = seconds
    for entry in json.loads(manifest.read_text()):
        if not (_is_speech(entry) and shortest_s <= _seconds(entry) <= longest_s):
            continue
        left -= _seconds(entry)
        if left < 0:
            break
        paths.append(manifest.parent / (entry.get("path") or entry["file"]))
    return paths


def load(paths: Sequence[Path]) -> list[Recording]:
    """Decode the recordings."""
    return [_load(path) for path in paths]


def _load(path: Path) -> Recording:
    with path.open("rb") as file:
        pcm = decode_audio(file, _MAX_S).samples
    return Recording(path.name, pcm, pcm.astype(np.float32) / np.float32(32768))


def _is_speech(entry: dict[str, Any]) -> bool:
    return entry.get("kind", "speech") == "speech" and entry.get("decodes", True)


def _seconds(entry: dict[str, Any]) -> float:
    return float(entry["duration_s"] if "duration_s" in entry else entry["seconds"])
