"""Where tasks wait and who has which slot; test_scheduler.py plays whole transcriptions."""

from typing import Any, cast

import pytest

from deployments.engine import EngineClosedError
from deployments.engine.queues import TaskQueues
from deployments.engine.tasks import (
    DecodeTask,
    DetectTask,
    MelTask,
    TaskState,
    Transcription,
)

NOTHING = cast(Any, None)


def transcription() -> Transcription:
    return Transcription(lambda: False)


def window(held: Transcription) -> DecodeTask:
    return DecodeTask(held, NOTHING, NOTHING, 0)


def test_a_task_waits_for_a_slot_only_if_it_needs_one_and_has_none() -> None:
    queues, held = TaskQueues(1), transcription()
    spectrogram = MelTask(transcription(), NOTHING)
    first, again = DetectTask(held, NOTHING), window(held)
    queues.submit(spectrogram)
    queues.submit(first)
    assert (queues.waiting, queues.ready) == ([first], [spectrogram])
    queues.hand_out_slots()
    queues.submit(again)
    assert (queues.waiting, queues.ready) == ([], [spectrogram, first, again])
    assert queues.take_ready() == [spectrogram, first, again]
    assert queues.ready == []


def test_slots_are_granted_in_order_of_arrival_the_lowest_first() -> None:
    queues = TaskQueues(2)
    tasks = [window(transcription()) for _ in range(3)]
    for task in tasks:
        queues.submit(task)
    queues.hand_out_slots()
    assert [task.transcription.slot for task in tasks] == [0, 1, None]
    assert (queues.free_slots, queues.waiting) == ([], [tasks[2]])
    queues.release(tasks[1].transcription)
    queues.hand_out_slots()
    assert tasks[2].transcription.slot == 1


def test_a_failed_task_has_left_every_queue_and_its_slot() -> None:
    queues, waiting, decoding = TaskQueues(1), transcription(), transcription()
    tasks = [window(decoding), window(waiting)]
    for task in tasks:
        queues.submit(task)
    queues.hand_out_slots()
    queues.start_decoding(tasks)
    assert queues.decoding == {0: tasks[0]}
    for task in tasks:
        queues.fail(task, LookupError())
    assert queues.free_slots == [0]
    assert not (queues.pending or queues.waiting or queues.decoding)
    for task in tasks:
        with pytest.raises(LookupError):
            task.wait()


def test_a_window_whose_caller_has_left_takes_no_steps() -> None:
    queues, task = TaskQueues(1), window(transcription())
    queues.submit(task)
    queues.hand_out_slots()
    queues.withdraw(task)
    queues.start_decoding([task])
    assert queues.decoding == {}
    assert queues.free_slots == [0]


def test_a_task_that_has_ended_is_not_put_back() -> None:
    queues, task = TaskQueues(1), MelTask(transcription(), NOTHING)
    queues.submit(task)
    queues.take_ready()
    queues.put_back(task)
    assert queues.take_ready() == [task]
    queues.succeed(task, None)
    queues.put_back(task)
    assert queues.ready == []


def test_closing_fails_all_tasks_and_refuses_new_ones() -> None:
    queues, tasks = TaskQueues(1), [window(transcription()) for _ in range(2)]
    for task in tasks:
        queues.submit(task)
    queues.hand_out_slots()
    queues.close()
    assert [task.state for task in tasks] == [TaskState.FAILED] * 2
    assert not (queues.pending or queues.waiting or queues.ready)
    with pytest.raises(EngineClosedError):
        tasks[0].wait()
    with pytest.raises(EngineClosedError):
        queues.submit(window(transcription()))
    assert not queues.wait_for_work(poll_s=0)
