"""Who gets a slot, when, and for how long."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine import EngineClosedError, TranscriptionCancelled
from deployments.engine.backoff import BatchLimit
from deployments.engine.decoding.batch import Progress
from deployments.engine.tasks import DecodeTask, DetectTask, TaskState, Transcription
from tests.support.engine.calls import PATIENCE_S, replace, until
from tests.support.engine.scheduling import (
    ERRORS,
    Attempt,
    Fate,
    NumberedWindow,
    Recording,
    Stage,
    Window,
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    tries = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    fate = draw(st.sampled_from([*ERRORS, *[None] * 9]))
    # A caller that gives up while the prompt is read is asked again only after the next step.
    first = 1 if fate == "is cancelled" else 0
    step = draw(st.integers(first, max(tries[0] - 1, first)))
    return Window(tries, fate if step < tries[0] else None, step)


recordings = st.builds(
    Recording,
    windows=st.lists(windows(), max_size=5),
    arrival=st.one_of(st.just(0), st.integers(0, 30)),
    pieces=st.integers(1, 4),
    language_is_detected=st.booleans(),
)
stages = st.tuples(
    st.lists(recordings, min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 3)
)


def assert_slots_are_free(stage: Stage) -> None:
    assert stage.queues.free_slots == list(range(stage.slots))
    assert not (stage.queues.decoding or stage.queues.pending)
    assert [run.transcription.slot for run in stage.runs] == [None] * len(stage.runs)


def occupy_a_slot(stage: Stage) -> Transcription:
    """Detect a language for a transcription that then asks for nothing more, and keeps its slot."""
    occupant = Transcription(lambda: False)
    mel = cast(Any, NumberedWindow(0, 0))
    stage.scheduler.run_task(DetectTask(occupant, mel))
    return occupant


def assert_queues_are_empty(stage: Stage) -> None:
    assert not (stage.queues.waiting or stage.queues.ready)


@given(stages)
def test_every_window_is_done_within_the_rules(
    plan: tuple[list[Recording], int, int],
) -> None:
    recordings, slots, together = plan
    stage = Stage(recordings, slots, together, cancel_poll_s=0).play()
    assert stage.problems == []
    for run in stage.runs:
        outcomes, error = run.recording.expected()
        assert type(run.error) is (error or type(None))
        assert run.outcomes == outcomes
        begun = [window for number, window in stage.begun if number == run.number]
        assert begun == list(range(len(begun)))
        assert run.transcription.usage().windows == len(begun)
    assert_slots_are_free(stage)
    assert_queues_are_empty(stage)
    stage.close()


@given(stages, st.integers(1, 20))
def test_closing_at_any_moment_answers_everyone(
    plan: tuple[list[Recording], int, int], closes_after: int
) -> None:
    recordings, slots, together = plan
    stage = Stage(recordings, slots, together, closes_after, cancel_poll_s=0).play()
    assert stage.problems == []
    for run in stage.runs:
        outcomes, error = run.recording.expected()
        if isinstance(run.error, EngineClosedError):
            assert run.outcomes == outcomes[: len(run.outcomes)]
        else:
            assert type(run.error) is (error or type(None))
            assert run.outcomes == outcomes
    stage.close()
    assert_slots_are_free(stage)


def test_no_step_is_taken_for_those_who_left_while_others_took_theirs() -> None:
    endless = Recording([Window((1_000_000,))])
    stage = Stage([endless, endless], slots=2, together=2)
    stage.scheduler.batch_limit = BatchLimit(1)
    tried: list[Sequence[int]] = []

    def closing(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            tried.append(slots)
            time.sleep(0.001)  # gives the other recording time to arrive
            progress = step(slots)
            if len(stage.queues.decoding) == 2:
                stage.scheduler.close()
                until(lambda: all(run.error is not None for run in stage.runs))
            return progress

        return wrapped

    replace(stage.scheduler.runner.batch, "step", closing)
    stage.play().close()
    assert stage.problems == []
    assert tried[-1] == [0]


def test_a_long_recording_makes_a_short_one_wait_for_a_window_at_most() -> None:
    long, longer = Recording([Window((2,))] * 90), Recording([Window((2,))] * 480)
    short = Recording([Window((2,))] * 3, arrival=50)
    stage = Stage([long, longer, short], slots=1).play()
    assert stage.problems == []
    waits = [
        counts
        for task, counts in stage.queues.overtaken.items()
        if task.transcription is stage.runs[2].transcription
    ]
    # It waits less often if the others' threads have not yet asked for their next slot.
    assert 1 <= len(waits) <= 3
    assert all(set(counts.values()) == {1} for counts in waits)
    assert all(len(counts) <= 2 for counts in waits)
    assert len(stage.begun) == 90 + 480 + 3
    stage.close()


def test_windows_that_arrive_together_take_turns() -> None:
    stage = Stage([Recording([Window((3,))] * 4)] * 3, slots=3).play()
    assert stage.problems == []
    assert stage.queues.overtaken == {}
    stage.close()


def test_a_long_spectrogram_does_not_stop_the_steps_of_others() -> None:
    decoding = Recording([Window((120,))])
    long = Recording([], arrival=5, pieces=50)
    stage = Stage([decoding, long], slots=1).play()
    first = stage.events.index("piece of 1")
    assert first == 1 + 5  # after the other recording's piece
    assert stage.events[first : first + 100] == ["piece of 1", "step"] * 50
    stage.close()


def test_steps_do_not_stop_the_spectrograms_of_others() -> None:
    decoding = Recording([Window((60,))])
    others = [Recording([], arrival=5, pieces=10) for _ in range(3)]
    stage = Stage([decoding, *others], slots=1).play()
    for run in stage.runs[1:]:
        places = [n for n, event in enumerate(stage.events) if event == run.piece]
        steps = stage.events[places[0] : places[-1]].count("step")
        assert steps <= len(places)
    stage.close()


def test_a_transcription_keeps_its_slot_from_one_try_of_a_window_to_the_next() -> None:
    retried = Recording([Window((2, 2, 2, 2))] * 2)
    other = Recording([Window((1,))] * 8)
    stage = Stage([retried, other], slots=1).play()
    assert stage.problems == []
    # In a slot that is kept, the audio is encoded only once.
    assert sorted(stage.begun) == [(0, n) for n in range(2)] + [
        (1, n) for n in range(8)
    ]
    assert stage.runs[0].transcription.usage().windows == 2
    assert stage.scheduler.windows_done == 10
    stage.close()


@pytest.mark.parametrize("fate", ERRORS)
def test_a_slot_is_free_for_the_next_step_after_its_window_has_failed(
    fate: Fate,
) -> None:
    bad = Recording([Window((1000,), fate, step=4)])
    waiting = Recording([Window((3,))], arrival=2)
    stage = Stage([bad, waiting], slots=1, cancel_poll_s=0).play()
    assert stage.problems == []
    assert type(stage.runs[0].error) is ERRORS[fate]
    assert stage.runs[1].outcomes == [3]
    # Reading the prompt is no step, and a step that raises is not recorded.
    of_the_bad_one = 3 if fate == "raises" else 4
    assert stage.events.count("step") == of_the_bad_one + 2
    stage.close()


def test_after_a_failure_of_many_fewer_go_on_together_until_it_has_been_calm() -> None:
    stage = Stage([Recording([Window((300,))]) for _ in range(4)], slots=4, together=4)
    stage.scheduler.batch_limit.calm_turns = 10
    tried: list[int] = []
    failed: list[int] = []

    def short_of_memory(step: Callable[[Sequence[int]], Progress]) -> Any:
        def wrapped(slots: Sequence[int]) -> Progress:
            tried.append(len(slots))
            if len(slots) > 2 and len(failed) < 3:
                failed.append(len(tried))
                raise MemoryError
            time.sleep(0.001)  # gives the other recordings time to arrive
            return step(slots)

        return wrapped

    replace(stage.scheduler.runner.batch, "step", short_of_memory)
    stage.play()
    assert stage.problems == []
    assert [run.outcomes for run in stage.runs] == [[300]] * 4
    first, second, third = failed
    assert second - first > 10
    assert third - second > 10
    assert 4 in tried[third:]
    stage.close()


def test_a_transcription_that_gives_up_before_its_turn_leaves_the_queue() -> None:
    stage = Stage([Recording([Window((10,))])], slots=1)
    (run,) = stage.runs
    occupant = occupy_a_slot(stage)
    run.start()
    until(lambda: len(stage.queues.waiting) == 1)
    run.gives_up = True
    run.thread.join(PATIENCE_S)
    assert occupant.slot == 0
    stage.close()
    assert isinstance(run.error, TranscriptionCancelled)
    assert_queues_are_empty(stage)


def test_a_wait_that_is_interrupted_gives_the_slot_back() -> None:
    window = Window((100_000,))
    never = 1_000_000  # so that the stage starts neither of them
    interrupted = Recording([window], arrival=never)
    next_one = Recording([Window((3,))], arrival=never)
    stage = Stage([interrupted, next_one], slots=1)
    run, next_run = stage.runs

    class Interrupted(DecodeTask):
        def wait(self) -> Any:
            until(lambda: "step" in stage.events)
            raise KeyboardInterrupt

    attempt = cast(Any, Attempt(run, window, 0))
    mel = cast(Any, NumberedWindow(0, 0))
    task = Interrupted(run.transcription, mel, attempt, 0)
    with pytest.raises(KeyboardInterrupt):
        stage.scheduler.run_task(task)
    assert task.state is TaskState.WITHDRAWN
    next_run.start()
    next_run.thread.join(PATIENCE_S)
    assert next_run.outcomes == [3]
    assert stage.begun == [(0, 0), (1, 0)]
    assert_slots_are_free(stage)
    stage.close()


@pytest.mark.parametrize("queue", [False, True])
def test_a_scheduler_with_nothing_to_do_sleeps(queue: bool) -> None:
    stage = Stage([Recording([Window((2,))])], slots=1)
    (run,) = stage.runs
    if queue:
        occupy_a_slot(stage)
        run.start()
        until(lambda: len(stage.queues.waiting) == 1)
    turns = stage.queues.turns
    time.sleep(0.3)
    assert stage.queues.turns - turns < 20
    stage.close()


def test_closing_empties_the_queues() -> None:
    recordings = [Recording([Window((50,))], pieces=pieces) for pieces in (1, 1, 100)]
    stage = Stage(recordings, slots=1, closes_after=5).play()
    stage.close()
    assert {type(run.error) for run in stage.runs} == {EngineClosedError}
    assert_queues_are_empty(stage)


def test_a_closed_scheduler_takes_no_work() -> None:
    stage = Stage([Recording([Window()])], slots=1)
    stage.close()
    assert not stage.scheduler.alive
    stage.play()
    assert isinstance(stage.runs[0].error, EngineClosedError)
    stage.scheduler.close()
