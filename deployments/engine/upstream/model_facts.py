"""What OpenAI's code asks of a model besides its weights."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor
from whisper import _ALIGNMENT_HEADS
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from deployments.engine.decoding.logit_filters import Vocabulary
from deployments.engine.model.transfer import to_device


@dataclass(frozen=True)
class ModelFacts:
    """Dimensions, device and languages of a model.

    decoder: an empty stand-in; `whisper.decoding.DecodingTask` looks for layers whose keys and
        values it would cache
    """

    dims: ModelDimensions
    device: torch.device
    is_multilingual: bool
    num_languages: int
    decoder: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(blocks=[]), repr=False
    )

    @classmethod
    def of(cls, model: Whisper, device: torch.device) -> Self:
        """device: where the engine runs, which need not be where the model is"""
        return cls(model.dims, device, model.is_multilingual, model.num_languages)

    @property
    def tokenizer(self) -> Tokenizer:
        return get_tokenizer(self.is_multilingual, num_languages=self.num_languages)

    @property
    def vocabulary(self) -> Vocabulary:
        tokenizer = self.tokenizer
        return Vocabulary(
            size=self.dims.n_vocab,
            eot=tokenizer.eot,
            timestamp_begin=tokenizer.timestamp_begin,
            no_timestamps=tokenizer.no_timestamps,
        )

    @property
    def max_prompt_tokens(self) -> int:
        """How many tokens of a prompt Whisper keeps, the last ones: 223 for all official models.

        Source: `DecodingTask._get_initial_tokens` in whisper/decoding.py.
        """
        return self.dims.n_text_ctx // 2 - 1


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of an `initial_prompt`, as `whisper.transcribe` makes them."""
    return tokenizer.encode(" " + text.strip())


def set_official_alignment_heads(model: Whisper, name: str) -> None:
    """Tell a model which of its heads show when a word was spoken, as OpenAI published them.

    name: of the official model whose weights these are or started from

    Raises RuntimeError where the model is not of that model's shape.
    """
    model.set_alignment_heads(_ALIGNMENT_HEADS[name])


def alignment_heads(model: Whisper, device: torch.device) -> dict[int, Tensor]:
    """The heads of cross-attention that show when a word was spoken, by layer, on the device."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in model.alignment_heads.indices().T.tolist():
        by_layer.setdefault(layer, []).append(head)
    return {layer: to_device(heads, device) for layer, heads in by_layer.items()}
