"""Pack what a bare GPU machine needs to measure the engine: no network, no Ray, no decoders of audio there.

    python -m benchmarks.gpu.prepare [RECORDING ... | --manifest PATH] [--seconds N]

Fills benchmarks/gpu/pack/1 to 3. The first folder has the code, the `whisper` package, the speech of tests/audio and
what else is asked for as samples, and the first part of base's weights; the others have the other parts. Each is
small enough for a machine that takes 64 MiB at a time.
"""

import argparse
import io
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from whisper.model import ModelDimensions

from benchmarks import recordings
from benchmarks.gpu import audio, models
from deployments import checkpoints

ROOT = Path(__file__).parent.parent.parent
PACK = Path(__file__).parent / "pack"
PARTS = 3

# Files and folders of this project that the pack holds.
CODE = (
    "deployments/__init__.py",
    "deployments/engine",
    "benchmarks/__init__.py",
    "benchmarks/gpu",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/engine",
)
# These need PyAV, or run where the pack is made.
LEFT_OUT = {
    "test_recordings.py",
    *("prepare.py", "report.py", "lines.py", "page.py", "picture.py"),
}
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
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    folders = [arguments.out / str(number + 1) for number in range(PARTS)]
    for folder in folders:
        folder.mkdir(parents=True)
    pack_code(folders[0])
    pack_recordings(paths, folders[0])
    pack_weights(folders, arguments.tiny)
    for folder in folders:
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{folder}: {size / (1 << 20):.1f} MiB", file=sys.stderr)


def pack_code(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "pack", *LEFT_OUT)
    for name in CODE:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    spec = find_spec("whisper")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    shutil.copytree(package, folder / "whisper", ignore=ignored)
    (folder / "pytest.ini").write_text(PYTEST)


def pack_recordings(paths: list[Path], folder: Path) -> None:
    # The folder tells files of the same name apart.
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    samples = {n: r.pcm for n, r in zip(names, recordings.load(paths), strict=True)}
    np.savez_compressed(folder / audio.FILE, allow_pickle=False, **samples)


def pack_weights(folders: list[Path], tiny: bool) -> None:
    """Pack base in half precision, the precision in which OpenAI publishes it."""
    if tiny:
        dims = models.tiny(models.DIMENSIONS["base"])
        model = models.random_model(dims, torch.device("cpu"))
        state, heads = model.state_dict(), None
    else:
        path = checkpoints.fetch("base", accept_unofficial=True).path
        content = torch.load(path, map_location="cpu", weights_only=True)
        dims = ModelDimensions(**content["dims"])
        state = content["model_state_dict"]
        heads = models.official_alignment_heads("base")
    halved = {name: value.half() for name, value in state.items()}
    file = io.BytesIO()
    torch.save({"dims": vars(dims), "model_state_dict": halved}, file)
    models.split(file.getvalue(), folders, heads)


if __name__ == "__main__":
    main()
