"""The decoding loop: one thread that does all the model's work, for many transcriptions at once.

A transcription runs in its caller's thread and comes here for what needs the model. A window takes a slot, in
order of arrival, and keeps it while it is decoded, tried again at other temperatures, and aligned. Its
transcription then queues anew for its next window, so that a long recording does not hold up a short one.
"""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from whisper.tokenizer import Tokenizer, get_tokenizer

from deployments.engine.decoding.batch import Progress
from deployments.engine.parts import Parts
from deployments.engine.tasks import (
    AlignTask,
    DecodeTask,
    DetectTask,
    EngineClosedError,
    MelTask,
    Session,
    Task,
    TranscriptionCancelled,
)
from deployments.engine.transfer import to_device
from deployments.engine.upstream.decoding import language_probabilities
from deployments.engine.upstream.mel import Mel, Spectrograms
from deployments.engine.upstream.timing import AttendedFrames, attention_matrix

logger = logging.getLogger(__name__)

_CANCEL_POLL_S = 0.1
# So many with fewer windows at once, after a failure of more.
_CALM_TURNS = 200


_Kind = TypeVar("_Kind", bound=Task)


class NotANumberError(ArithmeticError):
    """The model gave NaN for a window."""


class Scheduler:
    """Owns the model's thread.

    encoded_together: windows that the encoder, or the decoder over a whole text, takes at once
    """

    def __init__(
        self,
        parts: Parts,
        spectrograms: Spectrograms,
        *,
        slots: int,
        encoded_together: int,
    ) -> None:
        facts = self.facts = parts.facts
        self.spectrograms = spectrograms
        self.batch = parts.batch
        self.slots = slots
        self.windows_done = 0
        self.tokenizer: Tokenizer = get_tokenizer(
            facts.is_multilingual, num_languages=facts.num_languages
        )
        self._encoder = parts.encoder
        self._decoder = parts.decoder
        self._together = encoded_together
        self._at_once = slots  # that take a step together
        self._calm_turns = 0
        self._alignment_heads = parts.alignment_heads
        self._free = list(range(slots))
        self._waiting: deque[Task] = deque()  # for a slot
        self._ready: deque[Task] = deque()
        self._decoding: dict[int, DecodeTask] = {}
        self._pending: set[Task] = set()  # all of them, and those being worked on
        self._changed = threading.Condition()
        self._closed = False
        self._polled = 0.0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def slots_in_use(self) -> int:
        return self.slots - len(self._free)

    @property
    def windows_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """End at once: everyone who waits is told. Never blocks."""
        with self._changed:
            self._closed = True
            for task in [*self._pending]:
                self._settle(task, EngineClosedError("the engine was closed"))
            self._waiting.clear()
            self._ready.clear()
            self._decoding.clear()
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    # Called from the transcriptions' threads.

    def do(self, task: Task) -> Any:
        _check_cancelled(task)
        future = task.future
        with self._changed:
            if not self.alive:
                raise EngineClosedError("the engine is closed")
            has_place = not task.needs_slot or task.session.slot is not None
            (self._ready if has_place else self._waiting).append(task)
            self._pending.add(task)
            self._changed.notify_all()
        try:
            return future.result()
        finally:
            self._abandon(task)
            # The traceback of an error holds this frame, and the future holds the error.
            del future

    def _abandon(self, task: Task) -> None:
        """Where the caller's wait was interrupted, nobody is left to give the slot back."""
        with self._changed:
            if task in self._pending:
                self._pending.remove(task)
                self._forget(task)

    def release(self, session: Session) -> None:
        with self._changed:
            self._release(session)
            self._changed.notify_all()

    # The loop.

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while self._take_turn():
                    pass
        finally:
            # Also when something unforeseen ends the thread: nobody may wait for ever.
            self.close()

    def _take_turn(self) -> bool:
        """One round: what waits to begin, then one token for every window. False when closed."""
        with self._changed:
            if not self._anything_to_do():
                # Those who wait for a slot may be cancelled meanwhile.
                self._changed.wait(_CANCEL_POLL_S if self._waiting else None)
            if self._closed:
                return False
        self._drop_cancelled()
        with self._changed:
            self._hand_out_slots()
            ready = [*self._ready]
            self._ready.clear()
        self._together_or_alone(_of(DetectTask, ready), self._detect)
        self._together_or_alone(_of(AlignTask, ready), self._align)
        self._together_or_alone(_of(DecodeTask, ready), self._begin)
        for task in self._still_pending(_of(MelTask, ready)):
            self._alone(task, self._compute_piece)
        with self._changed:
            decoding = dict(sorted(self._decoding.items()))
        if decoding and not self._closed:
            self._step(decoding)
        return True

    def _anything_to_do(self) -> bool:
        can_begin = self._ready or (self._waiting and self._free)
        return bool(can_begin or self._decoding or self._closed)

    def _drop_cancelled(self) -> None:
        now = time.monotonic()
        if now - self._polled < _CANCEL_POLL_S:
            return
        self._polled = now
        with self._changed:
            tasks = [*self._pending]
        for task in tasks:
            self._alone(task, _check_cancelled)

    def _hand_out_slots(self) -> None:
        while self._waiting and self._free:
            task = self._waiting.popleft()
            task.session.slot = heapq.heappop(self._free)
            task.session.queue_s += time.monotonic() - task.submitted
            self._ready.append(task)

    def _release(self, session: Session) -> None:
        session.window = None
        session.detected = None
        if session.slot is not None:
            self._decoding.pop(session.slot, None)
            heapq.heappush(self._free, session.slot)
            session.slot = None

    def _settle(self, task: Task, outcome: Any) -> None:
        with self._changed:
            if task not in self._pending:
                return  # close() was faster
            self._pending.remove(task)
        future = task.future
        # An error's traceback holds the task: without this link there is no circle, and what the task holds
        # goes as soon as the caller has dealt with the error.
        del task.future
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _fail(self, task: Task, error: Exception) -> None:
        with self._changed:
            if task in self._pending:
                self._forget(task)
                self._settle(task, error)

    def _forget(self, task: Task) -> None:
        for queue in (self._waiting, self._ready):
            if task in queue:
                queue.remove(task)
        self._release(task.session)

    def _together_or_alone(
        self, tasks: Sequence[Any], work: Callable[[Any], None]
    ) -> None:
        """A failure of several tasks is nobody's in particular: each has a try of its own."""
        for start in range(0, len(tasks), self._together):
            if self._closed:
                return
            # Some may have been cancelled while the others were worked on, which can take seconds.
            self._drop_cancelled()
            some = self._still_pending(tasks[start : start + self._together])
            if len(some) > 1:
                try:
                    work(some)
                    continue
                except Exception as error:  # noqa: BLE001
                    _log_failure(error, len(some), 1)
            # Some of them may have been answered before the others failed.
            for task in self._still_pending(some):
                self._alone(task, lambda task: work([task]))

    def _still_pending(self, tasks: Sequence[_Kind]) -> list[_Kind]:
        with self._changed:
            return [task for task in tasks if task in self._pending]

    def _alone(self, task: Any, work: Callable[[Any], None]) -> None:
        try:
            work(task)
        except Exception as error:  # noqa: BLE001 - it belongs to this caller alone
            self._fail(task, error)

    def _compute_piece(self, task: MelTask) -> None:
        """One piece in each round, so that a recording of hours does not stop the others."""
        try:
            next(task.pieces)
        except StopIteration as end:
            self._settle(task, end.value)
        else:
            with self._changed:
                if task in self._pending:
                    self._ready.append(task)

    def _detect(self, tasks: list[DetectTask]) -> None:
        features = self._encoder(_stacked(task.mel for task in tasks))
        logits = self._decoder.hear_one(features, self.tokenizer.sot)
        for task, heard, row in zip(tasks, features, logits, strict=True):
            probabilities = language_probabilities(row, self.tokenizer)
            # A recording of 30 s and more begins with the very window that was heard for its language.
            task.session.detected = task.mel, heard
            self._settle(task, probabilities)

    def _align(self, tasks: list[AlignTask]) -> None:
        slots = [_slot(task) for task in tasks]
        hidden, scores = self._decoder.read(
            slots, [task.tokens for task in tasks], self._alignment_heads
        )
        for task, states, attention in zip(tasks, hidden, scores, strict=True):
            end = task.start + len(task.text)
            logits = self._decoder.logits(states[task.start : end])
            text = to_device(task.text, logits.device)
            spoken = logits[:, : self.tokenizer.eot].softmax(-1)
            probabilities = spoken.gather(1, text[:, None])
            matrix = attention_matrix(attention[:, : len(task.tokens), : task.frames])
            attended = AttendedFrames(
                matrix[task.start : -1].double().cpu().numpy(),
                probabilities[:, 0].double().cpu().numpy(),
            )
            self._settle(task, attended)

    def _begin(self, tasks: list[DecodeTask]) -> None:
        new = [task for task in tasks if task.session.window is not task.mel]
        for task, features in zip(new, self._features(new), strict=True):
            self._decoder.listen(_slot(task), features)
            task.session.window = task.mel
            task.session.detected = None
            task.session.windows += 1
            task.session.window_counted = False
        slots = [_slot(task) for task in tasks]
        progress = self.batch.join(
            slots, [task.plan for task in tasks], [task.number for task in tasks]
        )
        with self._changed:
            self._decoding.update(zip(slots, tasks, strict=True))
        self._conclude(progress)

    def _features(self, tasks: Sequence[DecodeTask]) -> list[Tensor]:
        known = {id(task): _detected_features(task) for task in tasks}
        unknown = [task for task in tasks if known[id(task)] is None]
        if unknown:
            encoded = self._encoder(_stacked(task.mel for task in unknown))
            known.update(zip(map(id, unknown), encoded, strict=True))
        return [features for task in tasks if (features := known[id(task)]) is not None]

    def _step(self, decoding: dict[int, DecodeTask]) -> None:
        left = [*decoding]
        while left:
            slots = left[: self._at_once]
            progress = self._try_step(slots)
            # Where it failed, the next try is here, where the failed one's memory is free again.
            if progress is not None:
                for slot in slots:
                    session = decoding[slot].session
                    session.steps += 1
                    session.windows_in_steps += len(slots)
                self._conclude(progress)
                left = left[len(slots) :]
        self._try_more_at_once()

    def _try_step(self, slots: Sequence[int]) -> Progress | None:
        """None where several windows failed together: it may be one of them, or their number."""
        try:
            return self.batch.step(slots)
        except Exception as error:  # noqa: BLE001
            if len(slots) > 1:
                self._at_once, self._calm_turns = len(slots) // 2, 0
                _log_failure(error, len(slots), self._at_once)
                return None
            self._break(slots[0], error)
            # It was this window then.
            self._at_once = self.slots
            return Progress([], [])

    def _try_more_at_once(self) -> None:
        """Where memory was short it may be there again."""
        self._calm_turns += 1
        if self._at_once < self.slots and self._calm_turns >= _CALM_TURNS:
            self._at_once, self._calm_turns = self._at_once * 2, 0

    def _conclude(self, progress: Progress) -> None:
        for slot in progress.broken:
            self._break(slot, NotANumberError("the model gave NaN"))
        for slot in progress.done:
            with self._changed:
                task = self._decoding.pop(slot, None)
            if task is not None:
                self._alone(task, self._deliver)

    def _deliver(self, task: DecodeTask) -> None:
        # Other temperatures for a window do not make it two.
        self.windows_done += not task.session.window_counted
        task.session.window_counted = True
        self._settle(task, self.batch.outcome(_slot(task)))

    def _break(self, slot: int, error: Exception) -> None:
        with self._changed:
            task = self._decoding.get(slot)
        if task is not None:
            self._fail(task, error)
        # Last: where the device has failed for good, this raises and ends the loop.
        self.batch.clear(slot)


def _stacked(mels: Iterable[Mel]) -> Tensor:
    """Shape (windows, mels, frames)."""
    return torch.stack([mel.tensor() for mel in mels])


def _log_failure(error: Exception, windows: int, retry: int) -> None:
    logger.warning(
        "event=batch_failed windows=%d error=%s retry_windows=%d",
        windows,
        type(error).__name__,
        retry,
    )


def _check_cancelled(task: Task) -> None:
    if task.session.cancelled():
        raise TranscriptionCancelled


def _slot(task: Task) -> int:
    assert task.session.slot is not None
    return task.session.slot


def _detected_features(task: DecodeTask) -> Tensor | None:
    """Of a window that was heard for its language already."""
    if task.session.detected is None:
        return None
    mel, features = task.session.detected
    return features if mel == task.mel else None


def _of(kind: type[_Kind], tasks: Sequence[Task]) -> list[_Kind]:
    return [task for task in tasks if isinstance(task, kind)]
