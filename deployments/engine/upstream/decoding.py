"""What one call of `decode` asks for, read from OpenAI's own `DecodingTask`, and the result made of its outcome."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from whisper.decoding import (
    ApplyTimestampRules,
    BeamSearchDecoder,
    DecodingOptions,
    DecodingResult,
    DecodingTask,
    MaximumLikelihoodRanker,
    SuppressBlank,
    SuppressTokens,
)
from whisper.model import ModelDimensions
from whisper.tokenizer import Tokenizer
from whisper.utils import compression_ratio

from deployments.engine.decoding.beam_search import Trace
from deployments.engine.transfer import to_device

# Draws at temperature > 0 come from generators seeded by this constant, one for each decoding of a request.
SEED = 0


@dataclass(frozen=True)
class ModelFacts:
    """What OpenAI's code asks of a model besides its weights."""

    dims: ModelDimensions
    device: torch.device
    is_multilingual: bool
    num_languages: int
    # `DecodingTask` looks for layers to cache, of which the engine has none to show.
    decoder: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(blocks=[]), repr=False
    )


@dataclass(frozen=True)
class Outcome:
    """What decoding a window has given."""

    trace: Trace
    no_speech_prob: float


class Plan:
    """How to decode one window.

    width: beams, or samples
    prompt: the tokens that are given
    steps: tokens that may be sampled at most
    finished_needed: sequences that end a beam search; None if the rows do not compete
    initial_timestamps: how many timestamps may come first; None if rules for timestamps do not hold
    """

    def __init__(self, model: ModelFacts, options: DecodingOptions) -> None:
        task = DecodingTask(model, options)
        decoder = task.decoder
        self.tokenizer: Tokenizer = task.tokenizer
        self.options = options
        self.width: int = task.n_group
        self.prompt: tuple[int, ...] = task.initial_tokens
        for token in self.prompt:
            _check(token, range(model.dims.n_vocab))
        self.sot_index: int = task.sot_index
        # Upstream stops once there are more tokens than the context holds.
        self.steps: int = min(task.sample_len, task.n_ctx + 1 - len(self.prompt))
        self.temperature: float = options.temperature
        self.finished_needed: int | None = None
        if isinstance(decoder, BeamSearchDecoder):
            self.finished_needed = decoder.max_candidates
        self._suppressed: tuple[int, ...] = ()
        self._suppressed_first: tuple[int, ...] = ()
        self.initial_timestamps: int | None = None
        timestamps = model.dims.n_vocab - self.tokenizer.timestamp_begin
        for rule in task.logit_filters:
            if isinstance(rule, SuppressBlank):
                self._suppressed_first = (
                    *self.tokenizer.encode(" "),
                    self.tokenizer.eot,
                )
            elif isinstance(rule, SuppressTokens):
                # Upstream indexes with them: negative ones count from the end.
                size = model.dims.n_vocab
                for token in rule.suppress_tokens:
                    _check(token, range(-size, size))
                self._suppressed = tuple(t % size for t in rule.suppress_tokens)
            elif isinstance(rule, ApplyTimestampRules):
                last = rule.max_initial_timestamp_index
                self.initial_timestamps = timestamps if last is None else last + 1
            else:
                raise TypeError(f"unknown logit filter {type(rule).__name__}")

    @property
    def samples(self) -> bool:
        return self.temperature > 0

    def suppressed(self, *, first: bool) -> tuple[int, ...]:
        """Tokens that must not be sampled; first: as the window's first token"""
        return self._suppressed + self._suppressed_first if first else self._suppressed

    def uniforms(self, number: int) -> Tensor:
        """The draws of the request's decoding `number`, shape (steps, width), in fp64 on the CPU."""
        generator = torch.Generator().manual_seed(SEED + number)
        return torch.rand(
            self.steps, self.width, generator=generator, dtype=torch.float64
        )

    def result(self, outcome: Outcome) -> DecodingResult:
        """Raises what upstream's ranking raises."""
        if self.finished_needed is not None:
            found = outcome.trace.finished_beams(self.finished_needed)
        else:
            found = outcome.trace.rows(self.tokenizer.eot)
        ranker = MaximumLikelihoodRanker(self.options.length_penalty)
        lengths = [torch.empty(len(tokens)) for tokens, _ in found]
        (best,) = ranker.rank([lengths], [[score for _, score in found]])
        tokens, score = found[best]
        text = self.tokenizer.decode(tokens).strip()
        return DecodingResult(
            audio_features=torch.empty(0),
            language=self.options.language or "en",
            tokens=tokens,
            text=text,
            avg_logprob=score / (len(tokens) + 1),
            no_speech_prob=outcome.no_speech_prob,
            temperature=self.temperature,
            compression_ratio=compression_ratio(text),
        )


def _check(token: int, valid: range) -> None:
    """Raises IndexError, as upstream does later: in a batch a wrong index would be another window's matter."""
    if token not in valid:
        raise IndexError(f"token {token} is not in the vocabulary of {valid.stop}")


def language_probabilities(logits: Tensor, tokenizer: Tokenizer) -> dict[str, float]:
    """Of each language's code, from logits of shape (vocabulary,); see `whisper.decoding.detect_language`."""
    tokens = to_device(tokenizer.all_language_tokens, logits.device)
    probabilities: np.ndarray = logits[tokens].softmax(-1).cpu().numpy()
    return dict(zip(tokenizer.all_language_codes, probabilities.tolist(), strict=True))
