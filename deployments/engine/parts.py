"""The parts of an engine, without the thread that drives them."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from deployments.engine.decoding.batch import Batch
from deployments.engine.decoding.logit_filters import Vocabulary
from deployments.engine.model.decoder import Decoder
from deployments.engine.model.encoder import Encoder
from deployments.engine.transfer import to_device
from deployments.engine.upstream.decoding import ModelFacts

# The most beams, or samples, of a window.
MAX_WIDTH = 10


@dataclass(frozen=True)
class Parts:
    """Encoder, decoder and decoding batch over one copy of a model's weights.

    alignment_heads: the attention heads of each layer that tell when a word was spoken; see `Decoder.read`
    """

    facts: ModelFacts
    encoder: Encoder
    decoder: Decoder
    batch: Batch
    alignment_heads: dict[int, Tensor]

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: Whisper, device: torch.device, dtype: torch.dtype, *, slots: int
    ) -> Self:
        """Copy the model's weights to the device in this precision, and allocate `slots` windows there."""
        dims = model.dims
        encoder = Encoder(model.encoder, device, dtype)
        decoder = Decoder(
            model.decoder, dims, device, dtype, slots=slots, width=MAX_WIDTH
        )
        facts = ModelFacts(dims, device, model.is_multilingual, model.num_languages)
        batch = Batch(
            decoder,
            _vocabulary(facts),
            slots=slots,
            width=MAX_WIDTH,
            steps=dims.n_text_ctx // 2,
            device=device,
        )
        return cls(facts, encoder, decoder, batch, _alignment_heads(model, device))

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return self.decoder.bytes_per_slot + self.batch.bytes_per_slot


def _vocabulary(facts: ModelFacts) -> Vocabulary:
    tokenizer = get_tokenizer(facts.is_multilingual, num_languages=facts.num_languages)
    return Vocabulary(
        size=facts.dims.n_vocab,
        eot=tokenizer.eot,
        timestamp_begin=tokenizer.timestamp_begin,
        no_timestamps=tokenizer.no_timestamps,
    )


def _alignment_heads(model: Whisper, device: torch.device) -> dict[int, Tensor]:
    by_layer: dict[int, list[int]] = {}
    for layer, head in model.alignment_heads.indices().T.tolist():
        by_layer.setdefault(layer, []).append(head)
    return {layer: to_device(heads, device) for layer, heads in by_layer.items()}
