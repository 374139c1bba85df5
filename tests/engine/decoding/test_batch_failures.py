"""What becomes of the windows of a `DecodingBatch` when one of them, or a step, goes wrong."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from deployments.engine.model_runner import MAX_WIDTH
from deployments.engine.upstream.decoding import plan_for
from tests.support.engine.lively_whisper import (
    BatchHarness,
    Job,
    job,
    lively_whisper,
    noise_mel,
    official,
)
from tests.support.engine.tiny_whisper import DIMENSIONS
from tests.support.engine.window_cases import EOT, FULL_PROMPT, assert_all_same, case

pytestmark = pytest.mark.usefixtures("inference_mode")

N_VOCAB = DIMENSIONS.n_vocab


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper()


@pytest.fixture(scope="module")
def jobs(model: Whisper) -> list[Job]:
    return [case(model, name) for name in ("five beams", "greedy", "patience")]


@pytest.fixture(scope="module")
def whispers(model: Whisper, jobs: list[Job]) -> list[DecodingResult]:
    return [official(model, one) for one in jobs]


@pytest.mark.parametrize(
    "options", [{}, {"beam_size": 5}, {"temperature": 0.5, "best_of": 3}]
)
def test_a_window_that_meets_a_nan_is_broken_and_the_others_are_not(
    model: Whisper,
    jobs: list[Job],
    whispers: list[DecodingResult],
    options: dict[str, Any],
) -> None:
    slots = BatchHarness(model, count=4)
    nothing_heard = torch.full_like(noise_mel(model), math.nan)
    ill = Job(nothing_heard, job(model, **options).options)
    assert slots.join([*jobs, ill]).broken == [3]
    slots.leave(3)
    slots.batch.clear(3)
    results: dict[int, DecodingResult] = {}
    while slots.live:
        results |= slots.finished(slots.step())
    assert_all_same([results[n] for n in range(3)], whispers)


def test_a_nan_met_late_does_not_reach_the_next_window_in_the_slot(
    model: Whisper, jobs: list[Job], whispers: list[DecodingResult]
) -> None:
    slots = BatchHarness(model, count=3)
    slots.join([job(model, beam_size=10, suppress_tokens=[EOT])] * 3)
    for _ in range(2):
        assert slots.step().broken == []
    for slot in range(3):
        nothing = torch.full((100, 32), math.nan, device=model.device)
        slots.decoder.write_cross_kv(slot, nothing)
    assert slots.step().broken == [0, 1, 2]
    for slot in range(3):
        slots.leave(slot)
        slots.batch.clear(slot)
    # The windows differ in width, so columns are read that the narrow ones have not written.
    assert_all_same(slots.decode(jobs), whispers)


class EveryOther:
    """A function whose odd calls fail, before or after their work."""

    def __init__(self, call: Callable[..., Any], when: str) -> None:
        self.call, self.when, self.calls = call, when, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        fails = self.calls % 2 == 1
        result = None if fails and self.when == "before" else self.call(*args)
        if fails:
            raise MemoryError
        return result


@pytest.mark.parametrize(
    ("method", "when"),
    [("step", "before"), ("step", "after"), ("reorder", "before")],
)
def test_a_step_that_failed_can_be_taken_again(
    monkeypatch: pytest.MonkeyPatch,
    model: Whisper,
    jobs: list[Job],
    whispers: list[DecodingResult],
    method: str,
    when: str,
) -> None:
    slots = BatchHarness(model)
    slots.join(jobs)
    flaky = EveryOther(getattr(slots.decoder, method), when)
    monkeypatch.setattr(slots.decoder, method, flaky)
    results: dict[int, DecodingResult] = {}
    while slots.live:
        with pytest.raises(MemoryError):
            slots.step()
        results |= slots.finished(slots.step())
    assert_all_same([results[n] for n in range(len(jobs))], whispers)


def test_nothing_that_may_fail_comes_after_the_reordering(
    monkeypatch: pytest.MonkeyPatch, model: Whisper, jobs: list[Job]
) -> None:
    """If beams were reordered twice, a second try of the step would continue the wrong beams."""
    slots = BatchHarness(model)
    slots.join(jobs)
    reorder = slots.decoder.reorder
    reordered: list[bool] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if reordered:
                names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    names: list[str] = []

    def watched(*args: Any) -> None:
        reorder(*args)
        reordered.append(True)

    monkeypatch.setattr(slots.decoder, "reorder", watched)
    with Watch():
        slots.step()
    # `cpu` and `tolist` read which windows are done.
    assert set(names) == {"__setitem__", "cpu", "tolist"}


@pytest.mark.parametrize(
    ("option", "token"),
    [
        ("suppress_tokens", N_VOCAB),
        ("suppress_tokens", -N_VOCAB - 1),
        ("prompt", N_VOCAB),
        ("prompt", -1),
        ("prefix", N_VOCAB),
    ],
)
def test_a_token_that_does_not_exist_is_refused_before_it_meets_other_windows(
    model: Whisper, option: str, token: int
) -> None:
    slots = BatchHarness(model)
    with pytest.raises(IndexError, match=f"token {token} is not in the vocabulary"):
        plan_for(slots.facts, DecodingOptions(language="en", **{option: [token]}))


def test_negative_suppressed_tokens_count_from_the_end(model: Whisper) -> None:
    options = DecodingOptions(language="en", suppress_tokens=[-5])
    plan = plan_for(BatchHarness(model).facts, options)
    assert N_VOCAB - 5 in plan.forbidden(first=False)
    assert N_VOCAB - 5 in plan.forbidden(first=True)


def test_a_prompt_that_leaves_no_room_is_refused(model: Whisper) -> None:
    slots = BatchHarness(model)
    full = DecodingOptions(language="en", prompt=FULL_PROMPT, prefix=[1] * 230)
    with pytest.raises(ValueError, match="too long"):
        slots.batch.check_fits(plan_for(slots.facts, full))


@pytest.mark.parametrize(
    "given",
    [
        {"beam_size": MAX_WIDTH + 1},
        {"temperature": 0.5, "best_of": MAX_WIDTH + 1},
        {"sample_len": 225},
    ],
)
def test_a_window_too_large_for_any_slot_is_refused(
    model: Whisper, given: dict[str, Any]
) -> None:
    slots = BatchHarness(model)
    plan = plan_for(slots.facts, DecodingOptions(language="en", **given))
    with pytest.raises(ValueError, match="more than a window may have"):
        slots.batch.check_fits(plan)


def test_the_largest_window_fits(model: Whisper) -> None:
    slots = BatchHarness(model)
    largest = DecodingOptions(language="en", beam_size=MAX_WIDTH, prompt=FULL_PROMPT)
    slots.batch.check_fits(plan_for(slots.facts, largest))
