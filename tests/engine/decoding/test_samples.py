"""Sampling against Whisper's own logit filters, followed by `Categorical`."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from deployments.engine.decoding.logit_filters import Distribution
from tests.support.engine.filter_cases import (
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


def sampled(
    chances: Distribution, row: int, temperature: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """The token of one row for each of these draws."""
    rows = chances.rows(on_device([row] * len(uniform)))
    return rows.sample(on_device([temperature] * len(uniform)), uniform)


@pytest.mark.parametrize("temperature", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_tokens_are_drawn_as_often_as_whispers_categorical_says(
    first: bool, temperature: float
) -> None:
    cases = Cases(SMALL, seed=8)
    rows = [cases.row(first) for _ in range(12)]
    logits = cases.plain(12)
    filtered = officially_filtered(SMALL, rows, logits)
    probabilities = Categorical(logits=filtered / temperature).probs
    # Draws at even distances are not random: an interval holds its share of them, within one.
    draws = 1000
    uniform = (on_device(range(draws), torch.float64) + 0.5) / draws
    chances = ours(SMALL, rows, logits)
    for row, expected in enumerate(probabilities):
        logprobs, tokens = sampled(chances, row, temperature, uniform)
        often = tokens.bincount(minlength=SMALL.size) / draws
        assert (often - expected).abs().max() <= 1 / draws + TOLERANCE
        official = filtered[row].log_softmax(-1)[tokens]
        assert (logprobs - official).abs().max() <= TOLERANCE


@WHISPERS
def test_a_draw_falls_on_the_token_whose_share_it_is_in(language: Language) -> None:
    cases = Cases(language, seed=9)
    rows = [cases.row(first=False) for _ in range(8)]
    logits = cases.plain(8)
    filtered = officially_filtered(language, rows, logits)
    temperature = torch.linspace(0.2, 1.0, 8).to(logits.device)
    uniform = torch.rand(8, generator=cases.random, dtype=torch.float64)
    uniform = uniform.to(logits.device)
    _, tokens = ours(language, rows, logits).sample(temperature, uniform)
    shares = (filtered / temperature[:, None]).double().softmax(-1)
    upper = shares.cumsum(-1).gather(1, tokens[:, None])[:, 0]
    lower = upper - shares.gather(1, tokens[:, None])[:, 0]
    assert (lower - 1e-6 <= uniform).all() and (uniform <= upper + 1e-6).all()


@WHISPERS
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_the_outermost_draws_give_tokens_that_are_possible(
    language: Language, first: bool
) -> None:
    cases = Cases(language, seed=10 + first)
    rows = [cases.row(first) for _ in range(16)]
    for logits in (cases.plain(16), cases.sparse(16), cases.peaked(16)):
        chances = ours(language, rows, logits)
        possible = officially_filtered(language, rows, logits).log_softmax(-1)
        for uniform in (0.0, 1 - 2**-53):
            draws = on_device([uniform] * 16, torch.float64)
            logprobs, tokens = chances.sample(on_device([1.0] * 16), draws)
            known = ~possible.isnan().any(-1)
            expected = possible.gather(1, tokens[:, None])[:, 0]
            assert expected[known].isfinite().all()
            assert logprobs[known].isfinite().all()


@WHISPERS
def test_a_rows_token_depends_on_nothing_but_the_row(language: Language) -> None:
    cases = Cases(language, seed=12)
    rows = [cases.row(first=False) for _ in range(6)]
    logits = cases.plain(6)
    temperature = torch.linspace(0.2, 1.0, 6).to(logits.device)
    uniform = torch.rand(6, generator=cases.random, dtype=torch.float64)
    uniform = uniform.to(logits.device)
    together = ours(language, rows, logits).sample(temperature, uniform)
    for i in range(6):
        one = slice(i, i + 1)
        alone = ours(language, rows[one], logits[one])
        logprob, token = alone.sample(temperature[one], uniform[one])
        assert torch.equal(token, together[1][one])
        assert torch.equal(logprob, together[0][one])


@pytest.mark.parametrize("temperature", [1e-300, 1e-40])
def test_a_temperature_too_low_to_divide_by_gives_nan_instead_of_any_token(
    temperature: float,
) -> None:
    logits = Cases(SMALL, seed=7).plain(1)
    chances = ours(SMALL, [Row([5])], logits)
    with pytest.raises((RuntimeError, ValueError)):
        Categorical(logits=logits / temperature).sample()
    drawn, _ = sampled(chances, 0, temperature, on_device([0.5], torch.float64))
    assert drawn.isnan().all()
