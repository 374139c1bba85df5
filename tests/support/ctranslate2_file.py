"""A tiny random Whisper, and the file that CTranslate2's converter would make of it."""

import struct
from collections.abc import Mapping

import numpy as np
from whisper.model import ModelDimensions, Whisper

from tools.ctranslate2_model import Array, state_digest

DIMS = ModelDimensions(
    n_mels=4,
    n_audio_ctx=6,
    n_audio_state=8,
    n_audio_head=2,
    n_audio_layer=1,
    n_vocab=11,
    n_text_ctx=5,
    n_text_state=8,
    n_text_head=4,
    n_text_layer=2,
)


def tiny_state() -> dict[str, Array]:
    """A state dict of `DIMS`, as Whisper itself names and shapes it, of random fp16 values."""
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(tuple(tensor.shape)).astype("<f2")
        for name, tensor in Whisper(DIMS).state_dict().items()
    }


def as_ctranslate2(state: Mapping[str, Array]) -> dict[str, Array]:
    """The way there, as CTranslate2's converter goes it."""
    variables: dict[str, Array] = {
        "encoder/num_heads": np.array(DIMS.n_audio_head, "<i2"),
        "decoder/num_heads": np.array(DIMS.n_text_head, "<i2"),
        "decoder/pre_norm": np.array(1, "<i1"),
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"],
    }

    def linear(theirs: str, *ours: str) -> None:
        weights = [state[f"{name}.weight"] for name in ours]
        zeros = np.zeros(DIMS.n_text_state, "<f2")
        biases = [state.get(f"{name}.bias", zeros) for name in ours]
        variables[f"{theirs}/weight"] = np.concatenate(weights)
        variables[f"{theirs}/bias"] = np.concatenate(biases)

    def norm(theirs: str, ours: str) -> None:
        variables[f"{theirs}/gamma"] = state[f"{ours}.weight"]
        variables[f"{theirs}/beta"] = state[f"{ours}.bias"]

    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    layers = {"encoder": DIMS.n_audio_layer, "decoder": DIMS.n_text_layer}
    for side, count in layers.items():
        positions = state[f"{side}.positional_embedding"]
        variables[f"{side}/position_encodings/encodings"] = positions
        for layer in range(count):
            theirs, ours = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            attn, cross = f"{ours}.attn", f"{ours}.cross_attn"
            norm(f"{theirs}/self_attention/layer_norm", f"{attn}_ln")
            stacked = (f"{attn}.query", f"{attn}.key", f"{attn}.value")
            linear(f"{theirs}/self_attention/linear_0", *stacked)
            linear(f"{theirs}/self_attention/linear_1", f"{attn}.out")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{cross}_ln")
                linear(f"{theirs}/attention/linear_0", f"{cross}.query")
                pair = (f"{cross}.key", f"{cross}.value")
                linear(f"{theirs}/attention/linear_1", *pair)
                linear(f"{theirs}/attention/linear_2", f"{cross}.out")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp.0")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp.2")
    return variables


TYPES = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    dimensions = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<BI", kind, len(data)) + data


def model_bin(variables: Mapping[str, Array]) -> bytes:
    arrays = [
        variable(name, array.shape, TYPES[array.dtype.str], array.tobytes())
        for name, array in variables.items()
    ]
    return packed(arrays)


def packed(
    variables: list[bytes], spec: str = "WhisperSpec", version: int = 6
) -> bytes:
    head = struct.pack("<I", version) + string(spec) + struct.pack("<I", 3)
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    count = struct.pack("<I", len(variables))
    return head + count + b"".join(variables) + struct.pack("<I", 1) + alias


STATE = tiny_state()
VARIABLES = as_ctranslate2(STATE)
MODEL_BIN = model_bin(VARIABLES)
DIGEST = state_digest(STATE)
