"""How a task ends, and what a transcription holds and has used."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from deployments.engine import Usage
from deployments.engine.tasks import DetectTask, Task, TaskState, Transcription

ENDS = ["succeed", "fail", "withdraw"]


class Recording:
    """Something that a task refers to, and that should be freed with it."""


class Failure(Exception):
    pass


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def new_task() -> Task:
    return Task(Transcription(lambda: False))


def end(task: Task, way: str) -> bool:
    if way == "succeed":
        return task.succeed("result")
    return task.fail(Failure()) if way == "fail" else task.withdraw()


def test_a_new_task_is_pending() -> None:
    assert new_task().state is TaskState.PENDING
    assert new_task().pending


@pytest.mark.parametrize("later", ENDS)
@pytest.mark.parametrize(
    ("first", "state"),
    [
        ("succeed", TaskState.SUCCEEDED),
        ("fail", TaskState.FAILED),
        ("withdraw", TaskState.WITHDRAWN),
    ],
)
def test_the_first_end_counts_and_later_ones_change_nothing(
    first: str, state: TaskState, later: str
) -> None:
    task = new_task()
    assert end(task, first)
    assert not end(task, later)
    assert task.state is state
    assert not task.pending
    if first == "succeed":
        assert task.wait() == "result"
    if first == "fail":
        with pytest.raises(Failure):
            task.wait()


@pytest.mark.parametrize("way", ENDS)
def test_an_end_wakes_whoever_waits(way: str) -> None:
    task, woken = new_task(), threading.Event()

    def wait() -> None:
        try:
            task.wait()
        except Failure:
            pass
        finally:
            woken.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not woken.wait(0.05)
    end(task, way)
    assert woken.wait(60)


def test_an_error_leaves_no_cycle_of_references(no_collector: None) -> None:
    recording = Recording()
    held = weakref.ref(recording)
    task = DetectTask(Transcription(lambda: False), cast(Any, recording))

    def fails(task: Task) -> None:
        raise Failure

    try:
        fails(task)
    except Failure as error:
        # The traceback refers to the task.
        task.fail(error)
    with pytest.raises(Failure):
        task.wait()
    del task, recording
    assert held() is None


def test_usage_counts_windows_once_and_averages_the_steps() -> None:
    transcription = Transcription(lambda: False)
    mel = cast(Any, object())
    assert transcription.usage() == Usage(0, 0, 0)
    transcription.grant(3, waited_s=1.5)
    transcription.begin_window(mel)
    for windows in (1, 2, 6):
        transcription.count_step(windows)
    assert [transcription.end_window() for _ in range(3)] == [True, False, False]
    assert transcription.release() == 3
    transcription.grant(0, waited_s=0.5)
    transcription.begin_window(mel)
    assert transcription.end_window()
    assert transcription.usage(0.9) == Usage(2.0, 2, 3.0, 0.9, steps=3)


def test_a_transcription_without_a_slot_holds_nothing_of_a_window() -> None:
    transcription = Transcription(lambda: False)
    mel = cast(Any, object())
    transcription.grant(1, waited_s=0)
    transcription.detected = mel, torch.zeros(1)
    transcription.window = mel
    assert transcription.release() == 1
    assert transcription.release() is None
    assert transcription.window is None
    assert transcription.features_of(mel) is None


def test_features_are_known_only_for_the_window_in_which_the_language_was_detected() -> (
    None
):
    transcription = Transcription(lambda: False)
    one, other = cast(Any, "one window"), cast(Any, "another window")
    assert transcription.features_of(one) is None
    features = torch.zeros(2)
    transcription.detected = one, features
    assert transcription.features_of(one) is features
    assert transcription.features_of(other) is None
    transcription.begin_window(one)
    assert transcription.features_of(one) is None
