"""The decoding loop: one thread that does all the model's work, for many transcriptions at once.

A transcription runs in its caller's thread, and hands over a task for everything that needs the
model. In each turn the thread begins what is ready, then decodes one token of every window.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from deployments.engine.backoff import BatchLimit
from deployments.engine.decoding.batch import Progress
from deployments.engine.model_runner import ModelRunner
from deployments.engine.queues import TaskQueues
from deployments.engine.tasks import (
    AlignTask,
    DecodeTask,
    DetectTask,
    MelTask,
    Task,
)

logger = logging.getLogger(__name__)

_CANCEL_POLL_S = 0.1

_Kind = TypeVar("_Kind", bound=Task)


class NotANumberError(ArithmeticError):
    """The model's output for a window was NaN."""


class Scheduler:
    """Owns the engine's thread. A task that fails fails its own transcription and no other.

    encoder_windows: how many windows the encoder, or the decoder over whole texts, takes at once
    cancel_poll_s: seconds between two questions to each caller whether it has cancelled

    Tests and measurements may replace or wrap the public methods of `runner`, its parts, and
    `queues`: the thread looks them up at every use.
    """

    def __init__(
        self,
        runner: ModelRunner,
        queues: TaskQueues,
        *,
        encoder_windows: int,
        cancel_poll_s: float = _CANCEL_POLL_S,
    ) -> None:
        self.runner = runner
        self.queues = queues
        self.batch_limit = BatchLimit(queues.slots)
        self.windows_done = 0
        self._encoder_windows = encoder_windows
        self._cancel_poll_s = cancel_poll_s
        self._polled = 0.0
        # On a CPU, other processes must not use up a transcription's time. A GPU works while the
        # thread waits.
        on_cpu = runner.facts.device.type == "cpu"
        self._clock = time.thread_time if on_cpu else time.monotonic
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether tasks are accepted."""
        return self._thread.is_alive() and not self.queues.closed

    def run_task(self, task: Task) -> Any:
        """Have the engine's thread do a task, and wait for its result. Called by other threads.

        Raises TranscriptionCancelled, DecodingLimitExceeded, EngineClosedError, and whatever doing
        the task raises.
        """
        task.transcription.raise_if_ended()
        self.queues.submit(task)
        try:
            return task.wait()
        finally:
            # If the wait was interrupted, nobody else would give the slot back.
            self.queues.withdraw(task)

    def close(self) -> None:
        """End at once: whoever waits gets EngineClosedError. Never blocks."""
        self.queues.close()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended, for `timeout` seconds at most.

        Returns whether it has.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while self.queues.wait_for_work(self._cancel_poll_s):
                    self._take_turn()
        finally:
            # Even if something unforeseen ends the thread, nobody may wait for ever.
            self.close()

    def _take_turn(self) -> None:
        """Begin what can begin, then decode one token of every window."""
        self._drop_ended()
        self.queues.hand_out_slots()
        ready = self.queues.take_ready()
        self._run_in_chunks(_of(DetectTask, ready), self._detect)
        self._run_in_chunks(_of(AlignTask, ready), self._align)
        self._run_in_chunks(_of(DecodeTask, ready), self._begin)
        for task in self.queues.still_pending(_of(MelTask, ready)):
            self._alone(task, self._compute_piece)
        decoding = self.queues.decoding
        if decoding:
            self._step(decoding)

    def _drop_ended(self) -> None:
        """Fail what was cancelled or has used up its time."""
        now = time.monotonic()
        if now - self._polled < self._cancel_poll_s:
            return
        self._polled = now
        for task in self.queues.pending:
            self._alone(task, lambda task: task.transcription.raise_if_ended())

    def _run_in_chunks(self, tasks: Sequence[Any], work: Callable[[Any], None]) -> None:
        """Do tasks several at a time. If they fail together, each is tried again alone."""
        for start in range(0, len(tasks), self._encoder_windows):
            if self.queues.closed:
                return
            # Some may have been cancelled during the work on the others, which can take seconds.
            self._drop_ended()
            chunk = self.queues.still_pending(
                tasks[start : start + self._encoder_windows]
            )
            if len(chunk) > 1:
                try:
                    with self._counted(chunk):
                        work(chunk)
                    continue
                except Exception as error:  # noqa: BLE001 - any of them may be the cause
                    _log_failure(error, len(chunk), retry=1)
            # Some may have succeeded before the others failed.
            for task in self.queues.still_pending(chunk):
                self._alone(task, lambda task: work([task]))

    def _alone(self, task: Any, work: Callable[[Any], None]) -> None:
        try:
            with self._counted([task]):
                work(task)
        except Exception as error:  # noqa: BLE001 - the error belongs to this caller alone
            self.queues.fail(task, error)

    @contextmanager
    def _counted(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Share the time of the work inside among the transcriptions of these tasks."""
        started = self._clock()
        try:
            yield
        finally:
            share = (self._clock() - started) / len(tasks)
            for task in tasks:
                task.transcription.count_work(share)

    def _compute_piece(self, task: MelTask) -> None:
        """Compute one piece in each turn, so that a recording of hours does not stop the others."""
        try:
            next(task.pieces)
        except StopIteration as end:
            self.queues.succeed(task, end.value)
        else:
            self.queues.put_back(task)

    def _detect(self, tasks: list[DetectTask]) -> None:
        _start(tasks)
        detected = self.runner.detect_languages([task.mel for task in tasks])
        for task, (features, probabilities) in zip(tasks, detected, strict=True):
            task.transcription.detected = task.mel, features
            self.queues.succeed(task, probabilities)

    def _align(self, tasks: list[AlignTask]) -> None:
        attended = self.runner.align(
            [_slot(task) for task in tasks], [task.passage for task in tasks]
        )
        for task, frames in zip(tasks, attended, strict=True):
            self.queues.succeed(task, frames)

    def _begin(self, tasks: list[DecodeTask]) -> None:
        _start(tasks)
        new = [task for task in tasks if task.transcription.window is not task.mel]
        for task, features in zip(new, self._features(new), strict=True):
            self.runner.decoder.write_cross_kv(_slot(task), features)
            task.transcription.begin_window(task.mel)
        progress = self.runner.batch.join(
            [_slot(task) for task in tasks],
            [task.plan for task in tasks],
            [task.number for task in tasks],
        )
        self.queues.start_decoding(tasks)
        self._conclude(progress)

    def _features(self, tasks: Sequence[DecodeTask]) -> Iterable[Tensor]:
        """The features of each task's window, encoded unless they are known already."""
        known = [task.transcription.features_of(task.mel) for task in tasks]
        unknown = [
            task.mel
            for task, features in zip(tasks, known, strict=True)
            if features is None
        ]
        encoded = iter(self.runner.encode(unknown)) if unknown else iter(())
        return [next(encoded) if features is None else features for features in known]

    def _step(self, decoding: dict[int, DecodeTask]) -> None:
        left = [*decoding]
        # A step of some takes time, in which the tasks of others may have ended.
        while left := [slot for slot in left if decoding[slot].pending]:
            slots = left[: self.batch_limit.windows]
            progress = self._try_step([decoding[slot] for slot in slots], slots)
            # A failed step is repeated here, outside the except block, where the memory that its
            # traceback held is free again.
            if progress is not None:
                for slot in slots:
                    decoding[slot].transcription.count_step(len(slots))
                self._conclude(progress)
                left = left[len(slots) :]
        self.batch_limit.turn_ended()

    def _try_step(self, tasks: Sequence[Task], slots: Sequence[int]) -> Progress | None:
        """None if several windows failed together, and fewer should be tried."""
        try:
            with self._counted(tasks):
                return self.runner.batch.step(slots)
        except Exception as error:  # noqa: BLE001 - any window may be the cause, or their number
            self.batch_limit.failed(len(slots))
            if len(slots) > 1:
                _log_failure(error, len(slots), retry=self.batch_limit.windows)
                return None
            self._fail_window(slots[0], error)
            return Progress([], [])

    def _conclude(self, progress: Progress) -> None:
        for slot in progress.broken:
            self._fail_window(slot, NotANumberError("the model's output was NaN"))
        for slot in progress.done:
            task = self.queues.stop_decoding(slot)
            if task is not None:
                self._alone(task, self._deliver)

    def _deliver(self, task: DecodeTask) -> None:
        self.windows_done += task.transcription.end_window()
        self.queues.succeed(task, self.runner.batch.outcome(_slot(task)))

    def _fail_window(self, slot: int, error: Exception) -> None:
        task = self.queues.decoding.get(slot)
        if task is not None:
            self.queues.fail(task, error)
        # This comes last: if the device has failed for good, it raises and ends the loop.
        self.runner.batch.clear(slot)


def _log_failure(error: Exception, windows: int, retry: int) -> None:
    logger.warning(
        "event=batch_failed windows=%d error=%s retry_windows=%d",
        windows,
        type(error).__name__,
        retry,
    )


def _start(tasks: Sequence[Task]) -> None:
    for task in tasks:
        task.transcription.start()


def _slot(task: Task) -> int:
    slot = task.transcription.slot
    assert slot is not None
    return slot


def _of(kind: type[_Kind], tasks: Sequence[Task]) -> list[_Kind]:
    return [task for task in tasks if isinstance(task, kind)]
