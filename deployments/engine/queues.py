"""Who waits for what: the tasks on their way to the engine's thread, and the slots."""

import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from deployments.engine.tasks import (
    DecodeTask,
    EngineClosedError,
    Task,
    Transcription,
)

_Kind = TypeVar("_Kind", bound=Task)


class TaskQueues:
    """All tasks that have not ended, and all slots. One lock guards everything.

    A window takes a slot in order of arrival. Its transcription keeps the slot while the window is
    decoded, tried again at other temperatures, and aligned. Then it queues anew for its next
    window, so a long recording does not hold up a short one.

    The callers' threads use `submit`, `withdraw` and `release`; `close` is for any thread. The
    methods after them are for the engine's thread.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.closed = False
        self._free = list(range(slots))  # a heap: the lowest slot is granted first
        self._waiting: deque[Task] = deque()
        self._ready: deque[Task] = deque()
        self._decoding: dict[int, DecodeTask] = {}
        self._pending: set[Task] = set()
        self._changed = threading.Condition()

    @property
    def free_slots(self) -> list[int]:
        with self._changed:
            return sorted(self._free)

    @property
    def waiting(self) -> list[Task]:
        """Tasks that wait for a slot, in order of arrival."""
        with self._changed:
            return [*self._waiting]

    @property
    def ready(self) -> list[Task]:
        """Tasks that the engine's thread can take up."""
        with self._changed:
            return [*self._ready]

    @property
    def decoding(self) -> dict[int, DecodeTask]:
        """Tasks whose windows take steps, by slot, in order of their slots."""
        with self._changed:
            return dict(sorted(self._decoding.items()))

    @property
    def pending(self) -> list[Task]:
        """All tasks that have not ended."""
        with self._changed:
            return [*self._pending]

    def still_pending(self, tasks: Sequence[_Kind]) -> list[_Kind]:
        with self._changed:
            return [task for task in tasks if task.pending]

    def submit(self, task: Task) -> None:
        """Raises EngineClosedError."""
        with self._changed:
            if self.closed:
                raise EngineClosedError("the engine is closed")
            can_begin = not task.needs_slot or task.transcription.slot is not None
            (self._ready if can_begin else self._waiting).append(task)
            self._pending.add(task)
            self._changed.notify_all()

    def withdraw(self, task: Task) -> None:
        """The caller no longer waits. Does nothing if the task has ended."""
        with self._changed:
            if task.withdraw():
                self._forget(task)
                self._changed.notify_all()

    def release(self, transcription: Transcription) -> None:
        """Take the transcription's slot back, if it has one."""
        with self._changed:
            self._release(transcription)
            self._changed.notify_all()

    def close(self) -> None:
        """Fail all pending tasks with EngineClosedError, and accept no more. Never blocks."""
        with self._changed:
            self.closed = True
            for task in self._pending:
                task.fail(EngineClosedError("the engine was closed"))
            self._pending.clear()
            self._waiting.clear()
            self._ready.clear()
            self._decoding.clear()
            self._changed.notify_all()

    def wait_for_work(self, poll_s: float) -> bool:
        """Sleep while there is nothing to do. False once the queues are closed.

        poll_s: wakes after this long if tasks wait for a slot, since they may have been cancelled
        """
        with self._changed:
            can_begin = self._ready or (self._waiting and self._free)
            if not (can_begin or self._decoding or self.closed):
                self._changed.wait(poll_s if self._waiting else None)
            return not self.closed

    def hand_out_slots(self) -> None:
        with self._changed:
            while self._waiting and self._free:
                task = self._waiting.popleft()
                waited_s = time.monotonic() - task.submitted
                task.transcription.grant(heapq.heappop(self._free), waited_s)
                self._ready.append(task)

    def take_ready(self) -> list[Task]:
        with self._changed:
            ready = [*self._ready]
            self._ready.clear()
            return ready

    def put_back(self, task: Task) -> None:
        """The task is not finished and gets its turn again."""
        with self._changed:
            if task.pending:
                self._ready.append(task)

    def start_decoding(self, tasks: Sequence[DecodeTask]) -> None:
        """The windows of these tasks take steps from now on."""
        with self._changed:
            for task in tasks:
                if task.pending and task.transcription.slot is not None:
                    self._decoding[task.transcription.slot] = task

    def stop_decoding(self, slot: int) -> DecodeTask | None:
        """The task whose window took steps in this slot; None if it has ended."""
        with self._changed:
            return self._decoding.pop(slot, None)

    def succeed(self, task: Task, result: Any) -> None:
        with self._changed:
            self._pending.discard(task)
            task.succeed(result)

    def fail(self, task: Task, error: Exception) -> None:
        """The slot is free before the caller learns of the error."""
        with self._changed:
            if task.pending:
                self._forget(task)
                task.fail(error)

    def _forget(self, task: Task) -> None:
        self._pending.discard(task)
        for queue in (self._waiting, self._ready):
            if task in queue:
                queue.remove(task)
        self._release(task.transcription)

    def _release(self, transcription: Transcription) -> None:
        slot = transcription.release()
        if slot is not None:
            self._decoding.pop(slot, None)
            heapq.heappush(self._free, slot)
