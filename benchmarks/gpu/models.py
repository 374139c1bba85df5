"""The Whisper models that are measured: base with its own weights, the others with random ones."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from benchmarks.gpu.run import Run

_EOT = 50257

# The parts of the checkpoint, and the file that describes the whole.
PARTS = "base.pt.part-{}"
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

    Its texts never end by themselves: the logits of special tokens and timestamps are zero, and
    those of the best text tokens are far above.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = Whisper(dims)
        # Upstream leaves this parameter uninitialised for the checkpoint to fill.
        torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    model.requires_grad_(False)
    model.decoder.token_embedding.weight[_EOT:] = 0
    return model.eval()


@dataclass(frozen=True)
class Weights:
    """A checkpoint of base as it travels.

    checkpoint: the content of a file
    source: where the weights are from, in words
    tiny: whether the model is for rehearsals only
    """

    checkpoint: bytes
    alignment_heads: bytes | None
    source: str
    tiny: bool

    def split(self, folders: Sequence[Path]) -> None:
        """Write a part of the checkpoint into each folder, and its description into the first."""
        size = -(-len(self.checkpoint) // len(folders))
        for number, folder in enumerate(folders):
            part = self.checkpoint[number * size : (number + 1) * size]
            (folder / PARTS.format(number + 1)).write_bytes(part)
        description = {
            "parts": len(folders),
            "sha256": hashlib.sha256(self.checkpoint).hexdigest(),
            "alignment_heads": (self.alignment_heads or b"").decode("ascii"),
            "source": self.source,
            "tiny": self.tiny,
        }
        (folders[0] / ABOUT).write_text(json.dumps(description))


def about(folder: Path) -> dict[str, Any]:
    """The description of the weights whose parts come together in this folder.

    Empty where there is none.
    """
    path = folder / ABOUT
    description: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return description


def base(folder: Path, device: torch.device) -> tuple[Whisper, str]:
    """The model whose parts are all in this folder, and where its weights are from.

    Raises WeightsMissingError.
    """
    told = about(folder)
    parts = range(1, 1 + told.get("parts", 1))
    paths = {number: folder / PARTS.format(number) for number in parts}
    for number, path in paths.items():
        if not path.exists():
            raise WeightsMissingError(
                f"base's weights are not whole: bring pack/{number} and call again"
            )
    whole = b"".join(path.read_bytes() for path in paths.values())
    if hashlib.sha256(whole).hexdigest() != told.get("sha256"):
        raise WeightsMissingError(
            f"the parts in {folder} are of different packs: delete them and bring all"
            " three folders again"
        )
    content = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    with torch.device(device):
        model = Whisper(ModelDimensions(**content["dims"]))
    model.load_state_dict(content["model_state_dict"])
    if told["alignment_heads"]:
        model.set_alignment_heads(told["alignment_heads"].encode("ascii"))
    model.eval().requires_grad_(False)
    return model, f"{told['source']}, {told['sha256'][:12]}"


def official_alignment_heads(name: str) -> bytes:
    heads: bytes = whisper._ALIGNMENT_HEADS[name]
    return heads
