"""Which tokens may come next and how probable they are: the logit filters of `whisper.decoding` and the
log-softmax after them, for all rows at once and without a pass over the vocabulary that is not needed.

The vocabulary is text (up to `eot`), then special tokens (`eot` among them), then timestamps. Only the text
is large. It is read for its sum and for the maxima of its blocks; masks are applied to the maxima, and the
candidates are looked for in the best blocks alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.decoding import float_order

_BLOCK = 128


@dataclass(frozen=True)
class Vocabulary:
    size: int
    eot: int
    timestamp_begin: int
    no_timestamps: int


@dataclass(frozen=True)
class History:
    """What the rules for timestamps need to know of what each row has sampled; all of shape (rows,).

    applies: whether the rules hold for the row (without_timestamps switches them off)
    last: whether its last token is a timestamp
    penultimate: whether the one before is, or there is none
    latest: its latest timestamp, as an index among timestamps; -1 if there is none
    """

    applies: Tensor
    last: Tensor
    penultimate: Tensor
    latest: Tensor


@dataclass(frozen=True)
class Distribution:
    """Log-probabilities of the next token, not yet written out.

    logits: without suppressed tokens, otherwise not masked; shape (rows, vocabulary)
    no_text: rows that no text may come next in, shape (rows,)
    tail: logits of special tokens and timestamps, masked; shape (rows, vocabulary - eot)
    block_maxima: of text, masked; shape (rows, blocks)
    normalizer: log of the sum of all exponentials, shape (rows,)
    """

    logits: Tensor
    eot: int
    no_text: Tensor
    tail: Tensor
    block_maxima: Tensor
    normalizer: Tensor

    def candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best tokens of each row: log-probabilities and tokens, shape (rows, count).

        Exact: `count` best elements lie within the `count` blocks of highest maxima.
        """
        blocks = _best(self.block_maxima, min(count, self.block_maxima.shape[1]))
        within = torch.arange(_BLOCK, device=blocks.device)
        # In the order of the vocabulary, which decides among equals.
        blocks = blocks.sort(1).values
        text_tokens = (blocks[:, :, None] * _BLOCK + within).flatten(1)
        # The last block is not a whole one.
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
        """A token of each row drawn at its temperature; its log-probability (at temperature 1) and itself.

        temperature, uniform: shape (rows,); uniform draws in [0, 1), in fp64
        """
        text = self.logits[:, : self.eot].masked_fill(self.no_text[:, None], -torch.inf)
        logits = torch.cat([text, self.tail], 1)
        probabilities = (logits / temperature[:, None]).softmax(-1)
        # In fp64 the rounding of a sum over the vocabulary stays far below any probability that matters.
        cumulated = probabilities.double().cumsum(-1)
        drawn = (uniform * cumulated[:, -1])[:, None]
        tokens = torch.searchsorted(cumulated, drawn, right=True)
        tokens = tokens.clamp(max=logits.shape[1] - 1)
        logprobs = logits.gather(1, tokens)[:, 0] - self.normalizer
        return logprobs.masked_fill(cumulated[:, -1].isnan(), torch.nan), tokens[:, 0]

    def rows(self, index: Tensor) -> "Distribution":
        """Of these rows only."""
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

    logits: shape (rows, vocabulary), fp32; changed
    suppressed: indices into the flattened logits of tokens that must not come
    initial_timestamps: for the first sampled token only: how many timestamps may begin a row, shape (rows,)

    Source: `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules` in whisper/decoding.py.
    """
    logits.view(-1).index_fill_(0, suppressed, -torch.inf)
    eot = vocabulary.eot
    specials = vocabulary.timestamp_begin - eot
    applies, first = history.applies, initial_timestamps is not None

    # Timestamps come in pairs, except directly before the end, and do not decrease.
    ends_segment = history.last & ~history.penultimate
    no_text = applies & (ends_segment | first)
    no_timestamps = applies & history.last & history.penultimate
    floor = history.latest + (~ends_segment & (history.latest >= 0)).long()

    tail = logits[:, eot:].clone()
    # Of a timestamp; negative for special tokens.
    last = vocabulary.size - vocabulary.timestamp_begin
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
    # The sum of all exponentials over the largest: a fused softmax is twice as fast as logsumexp.
    text_total = text_maximum - text.softmax(-1).amax(-1).log()
    # If timestamps together are more probable than any other token, one of them it is.
    timestamps_total = tail[:, specials:].logsumexp(-1)
    best_other = torch.maximum(
        text_maximum.masked_fill(no_text, -torch.inf), tail[:, :specials].amax(-1)
    )
    timestamp_due = applies & (timestamps_total > best_other)
    tail[:, :specials].masked_fill_(timestamp_due[:, None], -torch.inf)
    # Where nothing of the text is possible its total is NaN.
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
    """The indices of the `count` largest of each row, in order; of equals the first ones.

    `topk` leaves the order of equals open, and with it which of them are among the best.
    """
    ordered = float_order.to_integers(values + 0.0)  # + 0.0: there is a negative zero
    place = torch.arange(values.shape[1], device=values.device)
    return ((ordered.long() << 32) - place).topk(count).indices


def _block_maxima(text: Tensor) -> Tensor:
    whole = text.shape[1] // _BLOCK * _BLOCK
    maxima = text[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole == text.shape[1]:
        return maxima
    return torch.cat([maxima, text[:, whole:].amax(-1, keepdim=True)], 1)
