"""`logit_filters` against Whisper's own filters, log-softmax and choice of the best tokens."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.support.engine import devices
from tests.support.engine.filter_cases import (
    SECOND,
    SMALL,
    WHISPERS,
    Cases,
    Language,
    Row,
    officially_filtered,
    on_device,
    ours,
)

TOLERANCE = 1e-5

KINDS: dict[str, Callable[[Cases, int], Tensor]] = {
    "plain": Cases.plain,
    "ties": Cases.ties,
    "sparse": Cases.sparse,
    "peaked": Cases.peaked,
}


def assert_as_official(
    language: Language, rows: Sequence[Row], logits: Tensor, count: int = 6
) -> None:
    """Compare the best `count` candidates; of equal ones, no order is promised."""
    filtered = officially_filtered(language, rows, logits)
    logprobs = filtered.log_softmax(-1)
    values, tokens = ours(language, rows, logits).candidates(count)
    best = logprobs.topk(min(count + 1, language.size))
    expected = best.values[:, :count]
    assert torch.equal(values.isnan(), expected.isnan())
    assert torch.equal(values == -torch.inf, expected == -torch.inf)

    # The normalizer is about as large as a logit, and as precise.
    size = logits.masked_fill(logits.isinf(), 0).abs().amax(-1, keepdim=True)
    tolerance = TOLERANCE * (size / 64).clamp(min=1)
    finite = expected.isfinite()
    assert ((values - expected).abs() <= tolerance)[finite].all()
    assert ((logprobs.gather(1, tokens) - values).abs() <= tolerance)[finite].all()

    steps = best.values[:, :-1] - best.values[:, 1:] > 1e-6
    apart = finite & steps
    apart[:, 1:] &= steps[:, :-1]
    assert torch.equal(tokens[apart], best.indices[:, :count][apart])
    for row, known in zip(tokens, finite, strict=True):
        assert len(set(row[known].tolist())) == known.sum()


@WHISPERS
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_candidates_are_those_of_whispers_filters(
    language: Language, first: bool
) -> None:
    cases = Cases(language, seed=language.size + first)
    for kind in KINDS.values():
        rows = [cases.row(first) for _ in range(16)]
        assert_as_official(language, rows, kind(cases, len(rows)), count=11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", ["first", "reachable", "arbitrary"])
def test_thousands_of_rows_have_the_candidates_of_whispers_filters(
    kind: str, history: str
) -> None:
    cases = Cases(SMALL, seed=len(kind) + len(history))
    for count in (1, 2, 6, 11):
        rows = [
            cases.row(history == "first", history == "reachable") for _ in range(80)
        ]
        assert_as_official(SMALL, rows, KINDS[kind](cases, len(rows)), count)


@WHISPERS
def test_of_equally_probable_tokens_the_first_come_first_however_many_are_asked_for(
    language: Language,
) -> None:
    # Ties are frequent in half precision, and `argmax` of the greedy decoder takes the first. How
    # many are asked for depends on who else is in the batch.
    cases = Cases(language, seed=2)
    rows = [cases.row(first=False) for _ in range(16)]
    logits = (cases.plain(16) * 2).round() / 2
    filtered = officially_filtered(language, rows, logits)
    chances = ours(language, rows, logits)
    for count in (1, 2, 6, 11):
        expected = filtered.sort(descending=True, stable=True).indices[:, :count]
        _, tokens = chances.candidates(count)
        possible = filtered.gather(1, expected).isfinite()
        assert torch.equal(tokens[possible], expected[possible])


def flat(language: Language, rows: int = 1) -> Tensor:
    """Logits that make words improbable, and timestamps even more so."""
    logits = torch.zeros(rows, language.size, device=devices.chosen())
    logits[:, language.begin :] = -30.0
    return logits


@WHISPERS
@pytest.mark.parametrize("margin", [-1e-3, 1e-3], ids=["below", "above"])
def test_timestamps_prevail_only_when_together_they_are_above_every_word(
    language: Language, margin: float
) -> None:
    row = Row([language.begin, 5])
    logits = flat(language)
    logits[0, 1234] = 3.0
    allowed = language.size - language.begin - 1
    logits[0, language.begin + 1 :] = 3.0 + margin - torch.tensor(allowed).log()
    _, tokens = ours(language, [row], logits).candidates(5)
    assert (tokens[0] > language.begin).all() == (margin > 0)
    assert (tokens[0, 0] == 1234) == (margin < 0)
    assert_as_official(language, [row], logits)


@WHISPERS
def test_a_lone_timestamp_as_probable_as_the_best_word_does_not_prevail(
    language: Language,
) -> None:
    row = Row([language.begin, 5])
    logits = flat(language)
    logits[0, language.begin :] = -torch.inf
    logits[0, [1234, language.begin + 9]] = 3.0
    _, tokens = ours(language, [row], logits).candidates(3)
    assert tokens[0, 2] < language.begin
    assert_as_official(language, [row], logits, count=2)


@WHISPERS
def test_after_the_last_timestamp_only_itself_the_end_or_another_word_may_come(
    language: Language,
) -> None:
    last = language.size - 1
    rows = [Row([last - 9, 5, last]), Row([5, last, 6]), Row([last - 1, last])]
    cases = Cases(language, seed=3)
    for logits in (flat(language, 3), cases.plain(3), cases.plain(3) + 9):
        assert_as_official(language, rows, logits)
    _, tokens = ours(language, rows, flat(language, 3)).candidates(1)
    assert language.eot <= tokens[0, 0] < language.begin
    assert tokens[1, 0] < language.begin and tokens[2, 0] < language.begin


@WHISPERS
def test_a_probable_word_is_not_heard_where_a_segment_must_end(
    language: Language,
) -> None:
    row = Row([language.begin + 3, 5, language.begin + 8])
    logits = flat(language)
    logits[0, 1234] = 20.0
    assert_as_official(language, [row], logits)
    _, tokens = ours(language, [row], logits).candidates(3)
    assert (tokens[0] >= language.eot).all()


@WHISPERS
@pytest.mark.parametrize("max_initial", [None, 0, 1, 4, SECOND])
def test_the_first_token_is_an_early_timestamp(
    language: Language, max_initial: int | None
) -> None:
    row = Row(max_initial=max_initial)
    logits = Cases(language, seed=4).plain(1)
    assert_as_official(language, [row], logits, count=11)
    _, tokens = ours(language, [row], logits).candidates(1)
    latest = language.size - 1 if max_initial is None else language.begin + max_initial
    assert language.begin <= tokens[0, 0] <= latest


@WHISPERS
def test_rows_without_timestamps_are_left_alone_among_rows_that_have_them(
    language: Language,
) -> None:
    cases = Cases(language, seed=5)
    ends = [language.begin + 3, 5, language.begin + 8]
    for sampled in ([], [5], [language.begin], ends):
        rows = [Row(sampled, timestamps=t) for t in (True, False, False, True)]
        logits = cases.plain(1).repeat(4, 1)
        assert_as_official(language, rows, logits)
        alone = ours(language, rows[1:2], logits[:1]).candidates(6)
        together = ours(language, rows, logits).candidates(6)
        assert torch.equal(alone[0][0], together[0][1])
        assert torch.equal(alone[1][0], together[1][2])


@pytest.mark.parametrize("token", ["eot", "timestamp", "language"])
@pytest.mark.parametrize("timestamps", [True, False])
@WHISPERS
def test_where_no_word_is_possible_the_rest_still_is(
    language: Language, token: str, timestamps: bool
) -> None:
    only = {
        "eot": language.eot,
        "timestamp": language.begin + 9,
        "language": language.eot + 3,
    }
    logits = torch.full((1, language.size), -torch.inf, device=devices.chosen())
    logits[0, only[token]] = 2.0
    rows = [Row([language.begin, 5], timestamps=timestamps)]
    assert_as_official(language, rows, logits)
    values, tokens = ours(language, rows, logits).candidates(1)
    assert tokens.item() == only[token]
    assert values.item() == 0


@WHISPERS
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_row_in_which_nothing_is_possible_gives_nan_and_the_others_do_not(
    language: Language, first: bool
) -> None:
    rows = [Row([] if first else [language.begin])] * 3
    logits = Cases(language, seed=6).plain(3)
    # In the middle row, only tokens that the filters forbid are possible.
    possible = torch.zeros_like(logits[1], dtype=torch.bool)
    possible[language.begin + SECOND + 1 :] = True
    logits[1] = logits[1].masked_fill(~possible, -torch.inf)
    assert_as_official(language, rows, logits)
    chances = ours(language, rows, logits)
    drawn, _ = chances.sample(on_device([1.0] * 3), on_device([0.5] * 3).double())
    assert drawn.isnan().tolist() == [False, True, False]


@WHISPERS
def test_a_nan_in_a_row_gives_nan_and_the_others_are_as_they_were(
    language: Language,
) -> None:
    rows = [Row([language.begin, 5])] * 3
    logits = Cases(language, seed=7).plain(3)
    expected = ours(language, rows, logits).candidates(6)
    logits[1] = torch.nan
    values, tokens = ours(language, rows, logits).candidates(6)
    assert values[1].isnan().all()
    assert torch.equal(values[::2], expected[0][::2])
    assert torch.equal(tokens[::2], expected[1][::2])
    chances = ours(language, rows, logits)
    drawn, _ = chances.sample(on_device([1.0] * 3), on_device([0.5] * 3).double())
    assert drawn.isnan().tolist() == [False, True, False]
