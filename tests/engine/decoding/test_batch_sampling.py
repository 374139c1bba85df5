"""`DecodingBatch` at temperatures above zero, where its draws differ from those of Whisper."""

from typing import Any

import pytest
import torch
from whisper.decoding import DecodingResult, DecodingTask
from whisper.model import Whisper

from deployments.engine.upstream.decoding import result_of
from tests.support.engine import devices
from tests.support.engine.lively_whisper import (
    BatchHarness,
    Job,
    job,
    lively_whisper,
    official,
    tokenizer,
)
from tests.support.engine.window_cases import (
    EOT,
    TOLERANCE,
    WORDS,
    assert_all_same,
    case,
)

pytestmark = pytest.mark.usefixtures("inference_mode")

SAMPLING: dict[str, dict[str, Any]] = {
    "one sample": {"temperature": 0.4},
    "best of five": {"temperature": 0.6, "best_of": 5},
    "best of ten": {"temperature": 1.0, "best_of": 10, "length_penalty": 0.6},
    "samples without timestamps": {
        "temperature": 0.8,
        "best_of": 2,
        "without_timestamps": True,
    },
    "samples after a text": {"temperature": 0.2, "best_of": 3, "prompt": WORDS},
}


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper()


@pytest.fixture(scope="module")
def samples(model: Whisper) -> list[Job]:
    return [
        job(model, 50 + n, number=n, **given)
        for n, given in enumerate(SAMPLING.values())
    ]


@pytest.fixture(scope="module")
def sampled(model: Whisper, samples: list[Job]) -> list[DecodingResult]:
    """The result of each job when it is decoded alone."""
    with torch.inference_mode():
        return [BatchHarness(model).decode([one])[0] for one in samples]


@pytest.mark.parametrize("seed", [None, 1])
def test_a_sample_does_not_depend_on_slots_or_on_who_else_is_there(
    model: Whisper,
    samples: list[Job],
    sampled: list[DecodingResult],
    seed: int | None,
) -> None:
    others = ["five beams", "greedy", "ten beams", "prefix", "no timestamps"]
    mixed = [
        one
        for sample, name in zip(samples, others, strict=True)
        for one in (sample, case(model, name))
    ]
    assert_all_same(BatchHarness(model, seed).decode(mixed)[::2], sampled)


def test_the_windows_of_a_request_draw_differently_and_always_the_same(
    model: Whisper,
) -> None:
    windows = [job(model, number=n, temperature=1.0, best_of=2) for n in (0, 1, 2, 1)]
    first = [result.tokens for result in BatchHarness(model).decode(windows)]
    assert first == [result.tokens for result in BatchHarness(model).decode(windows)]
    assert first[1] == first[3]
    assert len({tuple(tokens) for tokens in first}) == 3


def test_a_sample_has_the_score_that_whisper_gives_its_tokens(
    model: Whisper, samples: list[Job], sampled: list[DecodingResult]
) -> None:
    for one, result in zip(samples, sampled, strict=True):
        expected = official_score(model, one, result.tokens)
        average = expected / (len(result.tokens) + 1)
        assert result.avg_logprob == pytest.approx(average, abs=TOLERANCE)


def official_score(model: Whisper, one: Job, tokens: list[int]) -> float:
    """The sum of log-probabilities of these tokens, and of `eot` if there was room for it."""
    task = DecodingTask(model, one.options)
    text = [*task.initial_tokens, *tokens]
    if len(tokens) < task.sample_len:
        text.append(EOT)
    model = devices.official(model)
    read = torch.tensor([text], device=model.device)
    mel = one.mel[None].to(model.device)
    all_logits = model.logits(read, model.encoder(mel))
    total = 0.0
    for place in range(task.sample_begin, len(text)):
        logits = all_logits[:, place - 1].clone()
        for rule in task.logit_filters:
            rule.apply(logits, read[:, :place])
        total += float(logits.log_softmax(-1)[0, text[place]])
    return total


def test_samples_at_a_temperature_near_zero_are_greedy(
    model: Whisper,
) -> None:
    for name in ("greedy", "no timestamps", "one word before"):
        cold = case(model, name, temperature=1e-4, best_of=2)
        expected = official(model, case(model, name))
        assert BatchHarness(model).decode([cold])[0].tokens == expected.tokens


def test_the_best_of_the_samples_is_the_one_that_ranks_highest(model: Whisper) -> None:
    slots = BatchHarness(model)
    one = job(model, temperature=1.0, best_of=6)
    slots.join([one])
    while 0 not in (progress := slots.step()).done:
        assert not progress.broken
    plan, outcome = slots.leave(0)
    rows = outcome.backpointers.rows(EOT)
    scores = [score / max(len(tokens), 1) for tokens, score in rows]
    assert len({tuple(tokens) for tokens, _ in rows}) == 6
    assert (
        result_of(outcome, plan, one.options, tokenizer(model)).tokens
        == rows[scores.index(max(scores))][0]
    )
