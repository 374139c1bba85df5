"""Pack what a bare GPU machine needs to measure the engine.

The machine has no network, no Ray and no audio decoder.

    python -m benchmarks.gpu.prepare [RECORDING ... | --manifest PATH] [--seconds N]

Fills benchmarks/gpu/pack/1 to 3. The first folder has the code, the `whisper` package, the speech
of tests/audio and what else is asked for as samples, the chunks of a long recording that is joined
of this speech, and the first part of base's weights; the others have the other parts. Each is small
enough for a machine that takes 64 MiB at a time.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks import recordings
from benchmarks.gpu import audio, chunked_recording, models
from deployments import checkpoints
from deployments.audio.speech import Span, chunks_of
from deployments.contract.chunking import ServerVad
from deployments.contract.errors import CheckpointError
from tools.weights import weights

ROOT = Path(__file__).parent.parent.parent
PACK = Path(__file__).parent / "pack"
PARTS = 3
# Some of 64 MiB is left for what travels beside a folder.
LARGEST_BYTES = 58 << 20

# Files and folders of this project that the pack holds. Nothing in them, but for what is left out,
# imports Ray, PyAV, pydantic, FastAPI or RunPod's SDK. `speech.py` imports Silero VAD only to find
# speech, which is done here.
CODE = (
    "deployments/__init__.py",
    "deployments/audio/__init__.py",
    "deployments/audio/speech.py",
    "deployments/engine",
    "deployments/replica/__init__.py",
    "deployments/replica/chunked.py",
    "deployments/replica/slot_shares.py",
    "benchmarks/__init__.py",
    "benchmarks/gpu",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/engine",
    "tests/support/__init__.py",
    "tests/support/engine",
)
# These need PyAV, or run where the pack is made.
LEFT_OUT = (
    "tests/engine/test_recordings.py",
    "benchmarks/gpu/prepare.py",
    "benchmarks/gpu/report.py",
    "benchmarks/gpu/lines.py",
    "benchmarks/gpu/page.py",
    "benchmarks/gpu/picture.py",
    "benchmarks/gpu/pack",
)
PYTEST = """[pytest]
pythonpath = .
addopts = -q --strict-markers
filterwarnings =
    error::pytest.PytestUnhandledThreadExceptionWarning
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare")
    recordings.add_arguments(parser)
    parser.set_defaults(seconds=120)
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument(
        "--tiny", action="store_true", help="a model of random weights instead of base"
    )
    arguments = parser.parse_args()
    paths = recordings.listed_in(recordings.IN_THE_REPOSITORY, seconds=300)
    if arguments.recordings or arguments.manifest:
        paths += recordings.chosen(parser, arguments)
    # What can fail comes before the old pack is deleted.
    samples = decoded(paths)
    names = in_english(samples)
    spans = spans_of(chunked_recording.joined([samples[name] for name in names]))
    try:
        weights = tiny_weights() if arguments.tiny else base_weights()
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    folders = [arguments.out / str(number + 1) for number in range(PARTS)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    pack_code(folders[0])
    np.savez_compressed(folders[0] / audio.FILE, allow_pickle=False, **samples)
    chunked_recording.write(folders[0], names, spans)
    weights.split(folders)
    for folder in folders:
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{folder}: {size / (1 << 20):.1f} MiB", file=sys.stderr)
        if size > LARGEST_BYTES:
            sys.exit(f"error: more than {LARGEST_BYTES >> 20} MiB: choose less speech")


def pack_code(folder: Path) -> None:
    for name in CODE:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=_left_out, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    spec = find_spec("whisper")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    shutil.copytree(package, folder / "whisper", ignore=_left_out)
    (folder / "pytest.ini").write_text(PYTEST)
    (folder / "commit.txt").write_text(_commit())


def _left_out(folder: str, names: list[str]) -> list[str]:
    paths = {str(ROOT / path) for path in LEFT_OUT}
    return [
        name
        for name in names
        if name == "__pycache__" or os.path.join(folder, name) in paths
    ]


def _commit() -> str:
    """The commit that is packed, and whether files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def decoded(paths: list[Path]) -> dict[str, npt.NDArray[np.int16]]:
    samples = {}
    paths = [*dict.fromkeys(path.resolve() for path in paths)]
    for path, recording in zip(paths, recordings.load(paths), strict=True):
        # The folder tells files of the same name apart.
        name = f"{path.parent.name}/{path.name}"
        if name in samples:
            sys.exit(f"error: two recordings are called {name}")
        samples[name] = recording.pcm
    return samples


def in_english(names: Iterable[str]) -> list[str]:
    """Those whose language the repository's manifest does not tell as another one.

    One recording in several languages would be decoded in the first of them.
    """
    folder = recordings.IN_THE_REPOSITORY
    manifest = json.loads((folder / "manifest.json").read_text())
    others = {
        f"{folder.name}/{entry['file']}"
        for entry in manifest
        if entry["language"] != "en"
    }
    return [name for name in names if name not in others]


def spans_of(recording: npt.NDArray[np.int16]) -> list[Span]:
    """The chunks in which a request with `chunking_strategy` "auto" is decoded."""
    auto = ServerVad()
    return chunks_of(
        recording,
        threshold=auto.threshold,
        padding_ms=auto.prefix_padding_ms,
        silence_ms=auto.silence_duration_ms,
        cancelled=lambda: False,
    ).spans


def base_weights() -> models.Weights:
    path = weights("base")
    try:
        checkpoints.verify("base", path)
        source = "OpenAI's weights"
    except CheckpointError:
        source = "converted weights"
    content = torch.load(path, map_location="cpu", weights_only=True)
    return models.Weights(
        _halved(content["dims"], content["model_state_dict"]),
        models.official_alignment_heads("base"),
        source=source,
        tiny=False,
    )


def tiny_weights() -> models.Weights:
    dims = models.tiny(models.DIMENSIONS["base"])
    model = models.random_model(dims, torch.device("cpu"))
    checkpoint = _halved(vars(dims), model.state_dict())
    return models.Weights(checkpoint, None, source="random numbers", tiny=True)


def _halved(dims: dict[str, int], state: dict[str, Tensor]) -> bytes:
    """A checkpoint in half precision, the precision in which OpenAI publishes base."""
    halved = {name: value.half() for name, value in state.items()}
    file = io.BytesIO()
    torch.save({"dims": dims, "model_state_dict": halved}, file)
    return file.getvalue()


if __name__ == "__main__":
    main()
