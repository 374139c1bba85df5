"""The Whisper models that are measured: base with its own weights, the others with random weights of the right size."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from benchmarks.gpu.run import Run

_EOT = 50257

# The parts of the checkpoint, and the file that describes the whole.
PARTS = "base.pt.part-*"
ABOUT = "base.json"

DIMENSIONS = {
    "base": ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6),
    "medium": ModelDimensions(80, 1500, 1024, 16, 24, 51865, 448, 1024, 16, 24),
    "turbo": ModelDimensions(128, 1500, 1280, 20, 32, 51866, 448, 1280, 20, 4),
    "large-v3": ModelDimensions(128, 1500, 1280, 20, 32, 51866, 448, 1280, 20, 32),
}


class WeightsMissingError(Exception):
    """Parts of the weights are missing, or differ from what was packed."""


def tiny(dims: ModelDimensions) -> ModelDimensions:
    """The same input and vocabulary with one narrow layer in the encoder and one in the decoder."""
    return replace(
        dims,
        n_audio_state=32,
        n_audio_head=2,
        n_audio_layer=1,
        n_text_state=32,
        n_text_head=2,
        n_text_layer=1,
    )


def measured(run: Run, names: Sequence[str]) -> Iterator[tuple[str, ModelDimensions]]:
    """These models and their sizes; in a tiny run the first one at its tiny size."""
    for name in names[:1] if run.tiny else names:
        yield name, tiny(DIMENSIONS[name]) if run.tiny else DIMENSIONS[name]


def random_model(dims: ModelDimensions, device: torch.device, seed: int = 0) -> Whisper:
    """A model whose random weights are drawn on the device, which takes seconds for the largest.

    It goes on with text for as long as it may: the logits of the end, of timestamps and of all special tokens are
    zero, and the best of the text is far above.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = Whisper(dims)
        # Upstream leaves this parameter uninitialised for the checkpoint to fill.
        torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    model.requires_grad_(False)
    model.decoder.token_embedding.weight[_EOT:] = 0
    return model.eval()


def split(
    checkpoint: bytes,
    folders: list[Path],
    alignment_heads: bytes | None,
    source: str,
) -> None:
    """Write one part of a checkpoint into each folder, and the description of the whole into the first.

    source: in words, where the weights are from
    """
    size = -(-len(checkpoint) // len(folders))
    for number, folder in enumerate(folders):
        part = checkpoint[number * size : (number + 1) * size]
        (folder / PARTS.replace("*", str(number + 1))).write_bytes(part)
    about = {
        "parts": len(folders),
        "sha256": hashlib.sha256(checkpoint).hexdigest(),
        "alignment_heads": alignment_heads and alignment_heads.decode("ascii"),
        "source": source,
    }
    (folders[0] / ABOUT).write_text(json.dumps(about))


def base(folder: Path, device: torch.device) -> tuple[Whisper, str]:
    """The model whose parts are all in this folder, and where its weights are from. Raises WeightsMissingError."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        whole = b"".join(
            (folder / PARTS.replace("*", str(number + 1))).read_bytes()
            for number in range(about["parts"])
        )
    except FileNotFoundError as error:
        raise WeightsMissingError(f"there is no {error.filename}") from None
    if hashlib.sha256(whole).hexdigest() != about["sha256"]:
        raise WeightsMissingError("the parts do not give the checkpoint that was split")
    content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    with torch.device(device):
        model = Whisper(ModelDimensions(**content["dims"]))
    model.load_state_dict(content["model_state_dict"])
    if about["alignment_heads"]:
        model.set_alignment_heads(about["alignment_heads"].encode("ascii"))
    return model.eval().requires_grad_(
        False
    ), f"{about['source']}, {about['sha256'][:12]}"


def official_alignment_heads(name: str) -> bytes:
    heads: bytes = whisper._ALIGNMENT_HEADS[name]
    return heads
