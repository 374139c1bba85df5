"""One copy of a model on its device, and what the engine's thread computes with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer

from deployments.engine.decoding.batch import DecodingBatch
from deployments.engine.model.decoder import Decoder
from deployments.engine.model.encoder import Encoder
from deployments.engine.model.transfer import to_device
from deployments.engine.upstream.decoding import language_probabilities
from deployments.engine.upstream.log_mel import Mel, Spectrograms
from deployments.engine.upstream.model_facts import ModelFacts, alignment_heads
from deployments.engine.upstream.timing import (
    AttendedFrames,
    Passage,
    attention_matrix,
)

# The most beams, or samples, of a window.
MAX_WIDTH = 10
# For spectrograms on the device: two hours of audio with 80 mels, 75 minutes with 128.
_SPECTROGRAM_BYTES = 230 << 20


@dataclass
class ModelRunner:
    """Encoder, decoder and decoding batch over one copy of a model's weights.

    alignment_heads: by layer, the heads of cross-attention that show when a word was spoken
    """

    facts: ModelFacts
    tokenizer: Tokenizer
    spectrograms: Spectrograms
    encoder: Encoder
    decoder: Decoder
    batch: DecodingBatch
    alignment_heads: dict[int, Tensor]

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: Whisper, device: torch.device, dtype: torch.dtype, *, slots: int
    ) -> Self:
        """Copy the weights to the device in this precision, and allocate the slots."""
        dims = model.dims
        facts = ModelFacts.of(model, device)
        encoder = Encoder(model.encoder, device, dtype)
        decoder = Decoder(
            model.decoder, dims, device, dtype, slots=slots, width=MAX_WIDTH
        )
        batch = DecodingBatch(
            decoder,
            facts.vocabulary,
            slots=slots,
            width=MAX_WIDTH,
            steps=dims.n_text_ctx // 2,
            device=device,
        )
        return cls(
            facts=facts,
            tokenizer=facts.tokenizer,
            spectrograms=Spectrograms(dims.n_mels, device, _SPECTROGRAM_BYTES),
            encoder=encoder,
            decoder=decoder,
            batch=batch,
            alignment_heads=alignment_heads(model, device),
        )

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return self.decoder.bytes_per_slot + self.batch.bytes_per_slot

    def encode(self, mels: Sequence[Mel]) -> Tensor:
        """The features of these windows, shape (windows, audio context, state)."""
        return self.encoder(torch.stack([mel.tensor() for mel in mels]))

    def detect_languages(
        self, mels: Sequence[Mel]
    ) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """For each window, its features and the probability of each language.

        Features have shape (audio context, state).
        """
        features = self.encode(mels)
        logits = self.decoder.first_token_logits(features, self.tokenizer.sot)
        for encoded, row in zip(features, logits, strict=True):
            yield encoded, language_probabilities(row, self.tokenizer)

    def align(
        self, slots: Sequence[int], passages: Sequence[Passage]
    ) -> Iterator[AttendedFrames]:
        """What each passage attends to in the window whose audio is in its slot."""
        hidden, scores = self.decoder.read(
            slots, [passage.tokens for passage in passages], self.alignment_heads
        )
        for passage, states, attention in zip(passages, hidden, scores, strict=True):
            end = passage.start + len(passage.text)
            logits = self.decoder.logits(states[passage.start : end])
            text = to_device(passage.text, logits.device)
            spoken = logits[:, : self.tokenizer.eot].softmax(-1)
            probabilities = spoken.gather(1, text[:, None])
            matrix = attention_matrix(
                attention[:, : len(passage.tokens), : passage.frames]
            )
            yield AttendedFrames(
                matrix[passage.start : -1].double().cpu().numpy(),
                probabilities[:, 0].double().cpu().numpy(),
            )
