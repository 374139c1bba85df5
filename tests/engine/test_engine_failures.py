"""A window that cannot be decoded fails its own call.

All others have the results they would have had.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from whisper.model import Whisper

from deployments.engine import Engine, EngineClosedError
from deployments.engine.decoding.batch import Progress
from deployments.engine.decoding.plan import Outcome
from deployments.engine.scheduler import NotANumberError
from tests.support.engine.calls import (
    BRIEF,
    PATIENCE_S,
    QUIET,
    Calls,
    Gate,
    Result,
    assert_same,
    exact_engine,
    is_quiet,
    replace,
    slots_of_quiet,
    succeeds,
    windows_by_slot,
)
from tests.support.engine.tiny_whisper import as_float, recording

OTHERS: list[dict[str, Any]] = [
    {},
    {"beam_size": 5},
    {"temperature": 0.7, "best_of": 3},
    {"language": None},
    {"word_timestamps": True},
]


class BadWindow(Exception):
    pass


@pytest.fixture(scope="module")
def alone(tiny_model: Whisper) -> list[Result]:
    """The results of the other calls when each is alone."""
    with exact_engine(tiny_model) as engine:
        return [
            engine.transcribe(_recording(number), **BRIEF | options)
            for number, options in enumerate(OTHERS)
        ]


@pytest.fixture(params=[1, 4], ids=["encoded one by one", "encoded together"])
def engine(request: pytest.FixtureRequest, tiny_model: Whisper) -> Iterator[Engine]:
    with exact_engine(tiny_model, encoder_windows=request.param) as engine:
        yield engine
    assert engine.join(PATIENCE_S)


class Company:
    """Calls of all kinds around those with a window that goes wrong."""

    def __init__(self, calls: Calls, alone: list[Result]) -> None:
        self.calls = calls
        self.engine = calls.engine
        self._alone = alone

    def around(
        self, audio: np.ndarray, bad: Sequence[dict[str, Any]]
    ) -> list[Future[Result]]:
        """Calls with these options among others, once the others have proved to be unharmed."""
        half = len(OTHERS) // 2
        futures = [self._other(number) for number in range(half)]
        in_their_midst = [self._call(audio, options) for options in bad]
        futures += [self._other(number) for number in range(half, len(OTHERS))]
        for future, alone in zip(futures, self._alone, strict=True):
            assert_same(future.result(PATIENCE_S), alone)
        wait(in_their_midst, PATIENCE_S)
        assert self.engine.alive
        assert self.engine.stats().slots_in_use == 0
        return in_their_midst

    def _other(self, number: int) -> Future[Result]:
        return self._call(_recording(number), OTHERS[number])

    def _call(self, audio: np.ndarray, options: dict[str, Any]) -> Future[Result]:
        transcribe = self.engine.transcribe
        return self.calls.threads.submit(transcribe, audio, **BRIEF | options)


def _recording(number: int) -> np.ndarray:
    return recording(1 + number / 2, seed=number)


@pytest.fixture
def company(calls: Calls, alone: list[Result]) -> Company:
    return Company(calls, alone)


def all_fail(futures: list[Future[Result]], error: type[Exception]) -> bool:
    return all(type(future.exception(PATIENCE_S)) is error for future in futures)


def fails_for_quiet(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def wrapped(mels: Tensor) -> Tensor:
        if any(map(is_quiet, mels)):
            raise BadWindow
        return encode(mels)

    return wrapped


def nan_for_quiet(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def wrapped(mels: Tensor) -> Tensor:
        features = encode(mels).clone()
        for window, mel in enumerate(mels):
            if is_quiet(mel):
                features[window, 700:] = float("nan")
        return features

    return wrapped


def test_a_window_that_cannot_be_encoded_fails_its_call_and_no_other(
    company: Company,
) -> None:
    replace(company.engine.scheduler.runner, "encoder", fails_for_quiet)
    assert all_fail(company.around(QUIET, [{}, {"language": None}]), BadWindow)


def test_a_window_that_lets_every_step_fail_fails_its_call_and_no_other(
    company: Company,
) -> None:
    engine = company.engine

    def fails(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            if slots_of_quiet(engine, slots):
                raise BadWindow
            return step(slots)

        return wrapped

    replace(engine.scheduler.runner.batch, "step", fails)
    assert all_fail(company.around(QUIET, OTHERS), BadWindow)


def test_steps_that_succeed_when_tried_alone_harm_nobody(company: Company) -> None:
    engine, failures = company.engine, []
    quiet = engine.transcribe(QUIET, **BRIEF)

    def fails(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            if len(slots) > 1:
                failures.append(slots)
                raise BadWindow
            return step(slots)

        return wrapped

    replace(engine.scheduler.runner.batch, "step", fails)
    gate = Gate(engine)
    futures = [company.calls.running() for _ in range(3)]
    gate.opened.set()
    for future in company.around(QUIET, [{}]):
        assert_same(future.result(), quiet)
    assert all(map(succeeds, futures))
    assert len(failures) > 0


def test_a_prompt_that_cannot_be_read_fails_its_call_and_no_other(
    company: Company,
) -> None:
    (ada,) = company.engine.scheduler.runner.tokenizer.encode(" Ada")

    def fails(prefill: Callable[..., Tensor]) -> Any:
        def wrapped(slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
            if any(ada in prompt for prompt in prompts):
                raise BadWindow
            return prefill(slots, prompts)

        return wrapped

    replace(company.engine.scheduler.runner.decoder, "prefill", fails)
    bad: list[dict[str, Any]] = [{}, {"beam_size": 5}]
    bad = [{"initial_prompt": "Ada", **options} for options in bad]
    assert all_fail(company.around(QUIET, bad), BadWindow)


def test_words_that_cannot_be_aligned_fail_their_call_and_no_other(
    company: Company,
) -> None:
    engine = company.engine

    def fails(read: Callable[..., Any]) -> Any:
        def wrapped(slots: Sequence[int], *rest: Any) -> Any:
            heard = windows_by_slot(engine)
            windows = [window for slot in slots if (window := heard[slot]) is not None]
            if any(map(is_quiet, windows)):
                raise BadWindow
            return read(slots, *rest)

        return wrapped

    replace(engine.scheduler.runner.decoder, "read", fails)
    words = {"word_timestamps": True}
    assert all_fail(company.around(QUIET, [words, words]), BadWindow)


def test_features_that_are_no_numbers_fail_their_calls_and_no_other(
    company: Company,
) -> None:
    replace(company.engine.scheduler.runner, "encoder", nan_for_quiet)
    assert all_fail(company.around(QUIET, OTHERS), NotANumberError)


def test_recordings_that_hold_no_numbers_fail_their_calls_and_no_other(
    company: Company,
) -> None:
    audio = as_float(recording(2))
    audio[5000] = np.nan
    assert all_fail(company.around(audio, OTHERS), NotANumberError)


@pytest.fixture
def one_slot(tiny_model: Whisper) -> Iterator[Engine]:
    with exact_engine(tiny_model, max_windows=1) as engine:
        yield engine


def test_the_next_window_in_the_slot_of_a_failed_one_is_unharmed(
    one_slot: Engine,
) -> None:
    audio = recording(2)
    runs: list[dict[str, Any]] = [{"beam_size": 5}, {"sample_len": 60}, *OTHERS]
    before = [one_slot.transcribe(audio, **BRIEF | options) for options in runs]
    replace(one_slot.scheduler.runner, "encoder", nan_for_quiet)
    for bad in runs[:3]:
        for options, expected in zip(runs[:2], before, strict=False):
            with pytest.raises(NotANumberError):
                one_slot.transcribe(QUIET, **BRIEF | bad)
            assert_same(one_slot.transcribe(audio, **BRIEF | options), expected)
    for options, expected in zip(runs, before, strict=True):
        assert_same(one_slot.transcribe(audio, **BRIEF | options), expected)


def test_what_a_failed_window_leaves_in_its_slot_stays_out_of_the_next_one(
    calls: Calls, gate: Gate
) -> None:
    """A longer window beside the next one makes it read columns that the failed one has written."""
    engine = calls.engine
    longer: dict[str, Any] = {"initial_prompt": "Ada. " * 100}
    gate.opened.set()
    expected = engine.transcribe(recording(1), **BRIEF)
    replace(engine.scheduler.runner, "encoder", nan_for_quiet)
    with pytest.raises(NotANumberError):
        engine.transcribe(QUIET, **BRIEF | longer)
    gate.opened.clear()
    next_one, beside = calls.running(), calls.running(**longer)
    gate.opened.set()
    assert_same(next_one.result(PATIENCE_S), expected)
    assert succeeds(beside)


@pytest.mark.parametrize(
    "options", [{}, {"beam_size": 5}, {"temperature": 0.5}], ids=str
)
def test_numbers_that_get_lost_late_in_a_window_are_noticed(
    one_slot: Engine, options: dict[str, Any]
) -> None:
    audio, steps = recording(2), [0]
    before = one_slot.transcribe(audio, **BRIEF | options)

    def gets_lost(logits: Callable[[Tensor], Tensor]) -> Any:
        def wrapped(hidden: Tensor) -> Tensor:
            steps[0] += 1
            return logits(hidden) * (float("nan") if steps[0] == 3 else 1.0)

        return wrapped

    replace(one_slot.scheduler.runner.decoder, "logits", gets_lost)
    with pytest.raises(NotANumberError):
        one_slot.transcribe(audio, **BRIEF | options)
    assert_same(one_slot.transcribe(audio, **BRIEF | options), before)


def test_a_result_that_cannot_be_read_fails_its_call_and_no_other(
    company: Company,
) -> None:
    engine = company.engine

    def fails(outcome: Callable[[int], Outcome]) -> Any:
        def wrapped(slot: int) -> Outcome:
            window = windows_by_slot(engine)[slot]
            if window is not None and is_quiet(window):
                raise BadWindow
            return outcome(slot)

        return wrapped

    replace(engine.scheduler.runner.batch, "outcome", fails)
    assert all_fail(company.around(QUIET, OTHERS), BadWindow)


def test_closing_while_a_step_fails_ends_the_thread_in_peace(
    calls: Calls, gate: Gate
) -> None:
    futures = [calls.running(), calls.running()]

    def fails(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            if not gate.opened.is_set():
                return step(slots)
            calls.engine.close()
            for future in futures:
                assert isinstance(future.exception(PATIENCE_S), EngineClosedError)
            raise BadWindow

        return wrapped

    replace(calls.engine.scheduler.runner.batch, "step", fails)
    gate.opened.set()
    assert calls.engine.join(PATIENCE_S)
    assert all(future.done() for future in futures)
