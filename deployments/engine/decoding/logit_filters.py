"""Which tokens may come next and how probable they are, for all rows at once.

This is the work of the logit filters of `whisper.decoding` and of the log-softmax after them, with
as few passes over the vocabulary as possible. The vocabulary consists of text (the tokens before
`eot`), special tokens (from `eot`) and timestamps. Only the text is large. It is read for its sum
and for the maxima of its blocks. Masks are applied to the maxima, and candidates are looked for in
the best blocks alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.decoding import float_order

_BLOCK = 128


@dataclass(frozen=True)
class Vocabulary:
    """The size of a model's vocabulary, and those of its tokens that the filters know."""

    size: int
    eot: int
    timestamp_begin: int
    no_timestamps: int


@dataclass(frozen=True)
class History:
    """What the timestamp filter needs to know of the tokens that each row has sampled.

    All of shape (rows,).

    applies: whether the filter is on; the option `without_timestamps` switches it off
    last: whether the last token is a timestamp
    penultimate: whether the token before the last is a timestamp, or does not exist
    latest: the latest timestamp, as an index among timestamps; -1 if there is none
    """

    applies: Tensor
    last: Tensor
    penultimate: Tensor
    latest: Tensor


@dataclass(frozen=True)
class Distribution:
    """Log-probabilities of the next token, in parts.

    logits: -inf for suppressed tokens, otherwise not masked; shape (rows, vocabulary)
    no_text: whether text must not come next, shape (rows,)
    tail: masked logits of special tokens and timestamps, shape (rows, vocabulary - eot)
    block_maxima: masked maxima of the blocks of text, shape (rows, blocks)
    normalizer: logarithm of the sum of all exponentials, shape (rows,); subtracted from a logit, it
        gives the log-probability
    """

    logits: Tensor
    eot: int
    no_text: Tensor
    tail: Tensor
    block_maxima: Tensor
    normalizer: Tensor

    def candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best tokens of each row: log-probabilities and tokens, shape (rows, count).

        This is exact, since the `count` best tokens lie within the `count` blocks of highest
        maxima.
        """
        blocks = _best(self.block_maxima, min(count, self.block_maxima.shape[1]))
        within = torch.arange(_BLOCK, device=blocks.device)
        # In the order of the vocabulary, which decides between equal logits.
        blocks = blocks.sort(1).values
        text_tokens = (blocks[:, :, None] * _BLOCK + within).flatten(1)
        # The last block is shorter than the others.
        missing = text_tokens >= self.eot
        text_tokens = text_tokens.clamp(max=self.eot - 1)
        text = self.logits.gather(1, text_tokens)
        text = text.masked_fill(missing | self.no_text[:, None], -torch.inf)
        tail_tokens = torch.arange(
            self.eot, self.logits.shape[1], device=blocks.device
        ).expand(len(text), -1)
        logits = torch.cat([text, self.tail], 1)
        best = _best(logits, count)
        tokens = torch.cat([text_tokens, tail_tokens], 1).gather(1, best)
        return logits.gather(1, best) - self.normalizer[:, None], tokens

    def sample(self, temperature: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token of each row. Gives its log-probability at temperature 1, and the token.

        temperature: shape (rows,); uniform: draws in [0, 1) in fp64, shape (rows,)
        """
        text = self.logits[:, : self.eot].masked_fill(self.no_text[:, None], -torch.inf)
        logits = torch.cat([text, self.tail], 1)
        probabilities = (logits / temperature[:, None]).softmax(-1)
        # In fp64 the rounding errors of a sum over the vocabulary are negligible.
        cumulated = probabilities.double().cumsum(-1)
        drawn = (uniform * cumulated[:, -1])[:, None]
        tokens = torch.searchsorted(cumulated, drawn, right=True)
        tokens = tokens.clamp(max=logits.shape[1] - 1)
        logprobs = logits.gather(1, tokens)[:, 0] - self.normalizer
        return logprobs.masked_fill(cumulated[:, -1].isnan(), torch.nan), tokens[:, 0]

    def rows(self, index: Tensor) -> "Distribution":
        """The distributions of these rows only."""
        return Distribution(
            self.logits[index],
            self.eot,
            self.no_text[index],
            self.tail[index],
            self.block_maxima[index],
            self.normalizer[index],
        )


def distribution(
    logits: Tensor,
    vocabulary: Vocabulary,
    history: History,
    *,
    suppressed: Tensor,
    initial_timestamps: Tensor | None,
) -> Distribution:
    """What may come next after `history`.

    logits: in fp32, shape (rows, vocabulary); suppressed tokens are overwritten
    suppressed: indices of suppressed tokens in the flattened logits
    initial_timestamps: how many timestamps may begin a row, shape (rows,); None unless this is the
        first sampled token

    Source: `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules` in whisper/decoding.py.
    """
    logits.view(-1).index_fill_(0, suppressed, -torch.inf)
    eot = vocabulary.eot
    specials = vocabulary.timestamp_begin - eot
    applies, first = history.applies, initial_timestamps is not None

    # Timestamps come in pairs, except directly before `eot`, and never decrease.
    ends_segment = history.last & ~history.penultimate
    no_text = applies & (ends_segment | first)
    no_timestamps = applies & history.last & history.penultimate
    floor = history.latest + (~ends_segment & (history.latest >= 0)).long()

    tail = logits[:, eot:].clone()
    last = vocabulary.size - vocabulary.timestamp_begin
    # The index of a timestamp among timestamps; negative for special tokens.
    index = torch.arange(-specials, last, device=logits.device)
    timestamp = index >= 0
    forbidden = timestamp & ((index < floor[:, None]) | no_timestamps[:, None])
    if initial_timestamps is not None:
        forbidden = forbidden | ~timestamp | (index >= initial_timestamps[:, None])
    forbidden = forbidden | (
        index == vocabulary.no_timestamps - vocabulary.timestamp_begin
    )
    tail = tail.masked_fill_(forbidden & applies[:, None], -torch.inf)

    text = logits[:, :eot]
    maxima = _block_maxima(text)
    text_maximum = maxima.amax(-1)
    # The largest softmax is 1 / sum(exp(x - max)). A fused softmax is twice as fast as logsumexp.
    text_total = text_maximum - text.softmax(-1).amax(-1).log()
    # If all timestamps together are more probable than any other token, a timestamp must come.
    timestamps_total = tail[:, specials:].logsumexp(-1)
    best_other = torch.maximum(
        text_maximum.masked_fill(no_text, -torch.inf), tail[:, :specials].amax(-1)
    )
    timestamp_due = applies & (timestamps_total > best_other)
    tail[:, :specials].masked_fill_(timestamp_due[:, None], -torch.inf)
    # If every token of the text is suppressed, `text_total` is NaN and must not be used.
    no_text = no_text | timestamp_due | (text_maximum == -torch.inf)

    return Distribution(
        logits,
        eot,
        no_text,
        tail,
        maxima.masked_fill_(no_text[:, None], -torch.inf),
        torch.logaddexp(
            text_total.masked_fill(no_text, -torch.inf), tail.logsumexp(-1)
        ),
    )


def _best(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values of each row, in order; the first of equal ones.

    `topk` alone does not say which of equal values it takes. So the index is added to the value.
    """
    ordered = float_order.to_integers(values + 0.0)  # + 0.0 makes negative zero zero
    place = torch.arange(values.shape[1], device=values.device)
    return ((ordered.long() << 32) - place).topk(count).indices


def _block_maxima(text: Tensor) -> Tensor:
    """Shape (rows, blocks) for text of shape (rows, tokens)."""
    whole = text.shape[1] // _BLOCK * _BLOCK
    maxima = text[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole == text.shape[1]:
        return maxima
    return torch.cat([maxima, text[:, whole:].amax(-1, keepdim=True)], 1)
