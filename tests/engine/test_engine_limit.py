"""How much of the engine's time a call may take, and how the time is counted."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from whisper.model import Whisper

from deployments.engine import DecodingLimitExceeded, Engine, Usage
from deployments.engine.decoding.batch import Progress
from tests.support.engine.calls import (
    BRIEF,
    PATIENCE_S,
    Calls,
    Gate,
    assert_same,
    exact_engine,
    succeeds,
)
from tests.support.engine.lively_whisper import lively_whisper
from tests.support.engine.tiny_whisper import TIMESTAMP_BEGIN, recording, sounds


def test_calls_share_the_time_of_the_engines_thread(calls: Calls) -> None:
    usages: list[Usage] = []
    started = time.monotonic()
    futures = [calls.start(seconds=40, on_usage=usages.append) for _ in range(4)]
    assert all(map(succeeds, futures))
    passed = time.monotonic() - started
    assert all(usage.busy_s > 0 for usage in usages)
    assert sum(usage.busy_s for usage in usages) <= passed


@pytest.mark.parametrize("slots", [1])
def test_time_that_a_call_waits_for_a_slot_is_not_counted(
    calls: Calls, gate: Gate
) -> None:
    usages: list[Usage] = []
    running = calls.running()
    started = time.monotonic()
    waiting = calls.waiting(on_usage=usages.append)
    time.sleep(0.3)
    gate.opened.set()
    assert succeeds(running)
    assert succeeds(waiting)
    passed = time.monotonic() - started
    assert 0.3 <= usages[0].queue_s <= passed - usages[0].busy_s


class BusyGate(Gate):
    """A gate before which the engine's thread works in vain."""

    def step(self, slots: Sequence[int]) -> Progress:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        return super().step(slots)


def test_a_call_over_its_limit_ends_in_the_middle_of_a_window_and_others_go_on(
    engine: Engine, calls: Calls
) -> None:
    gate = BusyGate(engine)
    neighbour = calls.running()
    endless = calls.start(max_busy_s=0.5)
    with pytest.raises(DecodingLimitExceeded):
        endless.result(PATIENCE_S)
    assert calls.engine.stats().slots_in_use == 1
    gate.opened.set()
    assert succeeds(neighbour)
    assert calls.engine.stats().slots_in_use == 0


def test_a_call_that_has_used_up_its_time_gets_no_further_window(
    engine: Engine,
) -> None:
    with pytest.raises(DecodingLimitExceeded):
        engine.transcribe(recording(50), max_busy_s=0.0, **BRIEF)
    assert engine.stats().windows_done == 0
    assert engine.transcribe(recording(50), max_busy_s=PATIENCE_S, **BRIEF)["segments"]


@pytest.fixture(scope="module")
def lively() -> Whisper:
    return lively_whisper(n_audio_ctx=1500)


def test_a_request_made_to_take_for_ever_ends_and_its_neighbour_is_not_changed(
    lively: Whisper, calls: Calls
) -> None:
    """Windows advance by 0.02 s, each is tried at eleven temperatures, and none is good enough."""
    two_timestamps = (TIMESTAMP_BEGIN, TIMESTAMP_BEGIN + 1)
    timestamps = range(TIMESTAMP_BEGIN, lively.dims.n_vocab)
    worst: dict[str, Any] = {
        "language": "en",
        "suppress_tokens": [t for t in timestamps if t not in two_timestamps],
        "temperature": tuple(step / 10 for step in range(11)),
        "logprob_threshold": 10.0,
        "no_speech_threshold": None,
        "beam_size": 5,
        "best_of": 5,
        "initial_prompt": "so " * 300,
        "carry_initial_prompt": True,
    }
    honest: dict[str, Any] = {
        "language": "en",
        "beam_size": 5,
        "sample_len": 8,
        "temperature": 0.0,
    }
    with exact_engine(lively) as engine:
        alone = engine.transcribe(sounds(12), **honest)
        endless = calls.threads.submit(
            engine.transcribe, sounds(300), max_busy_s=1.0, **worst
        )
        beside = engine.transcribe(sounds(12), **honest)
        with pytest.raises(DecodingLimitExceeded):
            endless.result(PATIENCE_S)
    assert_same(beside, alone)
