"""Rows that put the logit filters to the test, and what Whisper's own filters make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from whisper.decoding import ApplyTimestampRules, SuppressBlank, SuppressTokens
from whisper.tokenizer import get_tokenizer

from deployments.engine.decoding.logit_filters import (
    Distribution,
    History,
    Vocabulary,
    distribution,
)
from tests.support.engine import devices

PROMPT = [7]  # any token: the filters look at sampled tokens only
SECOND = 50  # timestamps in a second


@dataclass(frozen=True)
class Row:
    """What one row has sampled, and the options it is decoded with."""

    sampled: Sequence[int] = ()
    timestamps: bool = True
    max_initial: int | None = SECOND
    suppressed: Sequence[int] = ()
    suppress_blank: bool = True


@dataclass(frozen=True)
class Language:
    """A tokenizer as the official filters see it, and the size of the model's vocabulary."""

    tokenizer: Any
    size: int

    @property
    def vocabulary(self) -> Vocabulary:
        t = self.tokenizer
        return Vocabulary(self.size, t.eot, t.timestamp_begin, t.no_timestamps)

    @property
    def begin(self) -> int:
        return int(self.tokenizer.timestamp_begin)

    @property
    def eot(self) -> int:
        return int(self.tokenizer.eot)


MULTILINGUAL = Language(get_tokenizer(True, num_languages=99), 51865)
ENGLISH = Language(get_tokenizer(False), 51864)
LARGE_V3 = Language(get_tokenizer(True, num_languages=100), 51866)
# So small that thousands of rows cost little. The text is two blocks of maxima and a part.
SMALL = Language(
    SimpleNamespace(
        eot=300, no_timestamps=311, timestamp_begin=312, encode=lambda _: [220]
    ),
    size=380,
)
WHISPERS = pytest.mark.parametrize(
    "language",
    [
        pytest.param(MULTILINGUAL, id="multilingual"),
        pytest.param(ENGLISH, id="english"),
        pytest.param(LARGE_V3, id="v3"),
    ],
)


def on_device(values: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=devices.chosen())


def officially_filtered(
    language: Language, rows: Sequence[Row], logits: Tensor
) -> Tensor:
    filtered = logits.clone()
    for one, row in zip(filtered.split(1), rows, strict=True):
        tokens = torch.tensor([[*PROMPT, *row.sampled]])
        tokenizer, begin = language.tokenizer, len(PROMPT)
        if row.suppress_blank:
            SuppressBlank(tokenizer, begin).apply(one, tokens)
        SuppressTokens(row.suppressed).apply(one, tokens)
        if row.timestamps:
            rules = ApplyTimestampRules(tokenizer, begin, row.max_initial)
            rules.apply(one, tokens)
    return filtered


def ours(language: Language, rows: Sequence[Row], logits: Tensor) -> Distribution:
    """What our filters make of rows that are all at their first token, or all after it."""
    first = not rows[0].sampled
    assert all(first == (not row.sampled) for row in rows)
    blank = [*language.tokenizer.encode(" "), language.eot]
    suppressed = [
        index * language.size + token
        for index, row in enumerate(rows)
        for token in (
            *row.suppressed,
            *(blank if first and row.suppress_blank else ()),
        )
    ]
    initial = [
        language.size if row.max_initial is None else row.max_initial + 1
        for row in rows
    ]
    return distribution(
        logits.clone(),
        language.vocabulary,
        history(language, rows),
        suppressed=on_device(suppressed, torch.long),
        initial_timestamps=on_device(initial) if first else None,
    )


def history(language: Language, rows: Sequence[Row]) -> History:
    begin = language.begin
    stamps = [[t - begin for t in row.sampled if t >= begin] for row in rows]
    return History(
        applies=on_device([row.timestamps for row in rows]),
        last=on_device([bool(r.sampled) and r.sampled[-1] >= begin for r in rows]),
        penultimate=on_device(
            [len(r.sampled) < 2 or r.sampled[-2] >= begin for r in rows]
        ),
        latest=on_device([found[-1] if found else -1 for found in stamps]),
    )


class Cases:
    """Random rows and logits."""

    def __init__(self, language: Language, seed: int) -> None:
        self.language = language
        self.random = torch.Generator().manual_seed(seed)

    def row(self, first: bool, reachable: bool = True) -> Row:
        sampled = [] if first else self.reachable() if reachable else self.arbitrary()
        return Row(
            sampled,
            timestamps=self.below(5) > 0,
            max_initial=[None, 0, 1, self.below(40), SECOND][self.below(5)],
            suppressed=[self.below(self.language.size) for _ in range(self.below(90))],
            suppress_blank=self.below(3) > 0,
        )

    def reachable(self) -> list[int]:
        """A text that the filters allow: (timestamp, words, timestamp) repeated, cut anywhere."""
        language = self.language
        last = language.size - language.begin - 1
        now, tokens = self.below(last), list[int]()
        while now < last and self.below(4):
            words = [self.below(language.eot) for _ in range(1 + self.below(3))]
            after = min(now + 1 + self.below(last // 3), last)
            tokens += [language.begin + now, *words, language.begin + after]
            now = after + self.below(2)
        if now == last or not tokens:
            tokens.append(language.begin + now)
        return tokens[: 1 + self.below(len(tokens))] if self.below(2) else tokens

    def arbitrary(self) -> list[int]:
        """Any tokens at all, as `without_timestamps` allows them."""
        language = self.language
        begins = (0, language.eot, language.begin)
        starts = [begins[self.below(3)] for _ in range(1 + self.below(5))]
        return [start + self.below(language.size - start) for start in starts]

    def plain(self, rows: int) -> Tensor:
        """Logits with timestamps above the text in some rows, and below in others."""
        language = self.language
        logits = torch.randn(rows, language.size, generator=self.random) * 4
        shift = torch.rand(rows, 1, generator=self.random) * 20 - 15
        logits[:, language.begin :] += shift
        return logits.to(devices.chosen())

    def ties(self, rows: int) -> Tensor:
        logits = torch.randint(-1, 2, (rows, self.language.size), generator=self.random)
        logits = logits.float()
        logits[:, self.language.begin :] -= self.below(7)
        return logits.to(devices.chosen())

    def sparse(self, rows: int) -> Tensor:
        """Logits that are nearly all -inf, but for one word."""
        logits = self.plain(rows)
        kept = torch.rand(logits.shape, generator=self.random) < 0.02
        kept[:, self.below(200)] = True
        return logits.masked_fill(~kept.to(logits.device), -torch.inf)

    def peaked(self, rows: int) -> Tensor:
        logits = self.plain(rows)
        token = torch.randint(self.language.size, (rows, 1), generator=self.random)
        return logits.scatter(1, token.to(logits.device), 10.0 ** (1 + self.below(4)))

    def below(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.random))
