"""CTranslate2's Whisper models, read as data and converted to the layout of OpenAI's files."""

import hashlib
import itertools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.contract.errors import CheckpointError

Array = npt.NDArray[Any]
Variables = Mapping[str, Array]


def parse(data: bytes) -> dict[str, Array]:
    """The variables of a CTranslate2 `model.bin`, by name; views into `data`.

    Format: `ModelSpec._serialize` in ctranslate2/specs/model_spec.py, binary version 6. Little
    endian: uint32 version, string spec, uint32 revision, uint32 count; for each variable string
    name, uint8 rank, uint32 dimensions, uint8 type, uint32 bytes, data; then uint32 count of
    aliases, each two strings. Raises CheckpointError on anything else.
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
    """A CTranslate2 model in OpenAI's layout: `dims` and `model_state_dict`, all tensors fp16.

    The values are numpy arrays. Raises CheckpointError when a variable is missing or has an
    unfitting shape.
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
    """SHA-256 over the tensors by name: each name, then its values as little-endian fp16."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(_half(state[name]).tobytes())
    return digest.hexdigest()


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
