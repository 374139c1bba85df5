"""What a transcription asks of the engine's thread, and what it holds there."""

import enum
import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from deployments.engine.decoding.plan import DecodePlan
from deployments.engine.upstream.log_mel import Mel, Spectrogram
from deployments.engine.upstream.timing import Passage

Cancelled = Callable[[], bool]
OnStart = Callable[[], None]


class TranscriptionCancelled(Exception):
    """`cancelled()` returned true; nothing more of this recording is decoded."""


class DecodingLimitExceeded(Exception):
    """The transcription has used up `max_busy_s`; nothing more of this recording is decoded."""


class EngineClosedError(RuntimeError):
    """The engine was closed or its thread has died; the recording was not transcribed."""


@dataclass(frozen=True)
class Usage:
    """What one transcription has taken of the engine.

    queue_s: seconds that its windows waited for a slot
    windows: number of windows that were decoded
    occupancy: how many windows took part in its decoding steps, on average: 1 if it was always
        alone, 0 if it took no step
    language_probability: probability of the detected language; None if no language was detected,
        because the caller named one or the model knows only English
    busy_s: seconds that the engine's thread worked on it, on a CPU without the time in which other
        processes had the processor; of work on several windows together, each has its share
    steps: number of decoding steps
    """

    queue_s: float
    windows: int
    occupancy: float
    language_probability: float | None = None
    busy_s: float = 0.0
    steps: int = 0


class Transcription:
    """What one call of `Engine.transcribe` holds in the engine, and what it has used.

    slot: the slot that it has, None while it has none
    window: the window whose cross-attention keys and values are in the slot
    detected: the window in which the language was detected, and its features
    cancelled: asked now and then whether the work is to end
    on_start: called once, when the work on the first window begins
    max_busy_s: how much of the engine's time the work may take

    `TaskQueues` grants the slot and takes it back, under its lock. The engine's thread changes the
    rest, while the caller's thread waits for a task.
    """

    def __init__(
        self,
        cancelled: Cancelled,
        max_busy_s: float = math.inf,
        on_start: OnStart | None = None,
    ) -> None:
        self.cancelled = cancelled
        self._on_start = on_start
        self._max_busy_s = max_busy_s
        self._busy_s = 0.0
        self.slot: int | None = None
        self.window: Mel | None = None
        self.detected: tuple[Mel, Tensor] | None = None
        self._queue_s = 0.0
        self._windows = 0
        self._window_is_done = False
        self._steps = 0
        self._windows_in_steps = 0

    def grant(self, slot: int, waited_s: float) -> None:
        self.slot = slot
        self._queue_s += waited_s

    def release(self) -> int | None:
        """Give up the slot, which is returned, and everything that belongs to the window in it."""
        slot, self.slot = self.slot, None
        self.window = None
        self.detected = None
        return slot

    def start(self) -> None:
        """The work on a window begins. Raises what the caller's callback raises."""
        if self._on_start is not None:
            self._on_start()
            self._on_start = None

    def begin_window(self, mel: Mel) -> None:
        """The audio of this window is in the slot from now on."""
        self.window = mel
        self.detected = None
        self._windows += 1
        self._window_is_done = False

    def end_window(self) -> bool:
        """Whether this is the first result of the window: other temperatures do not count again."""
        first = not self._window_is_done
        self._window_is_done = True
        return first

    def count_step(self, windows: int) -> None:
        """The window took a step together with `windows - 1` others."""
        self._steps += 1
        self._windows_in_steps += windows

    def count_work(self, seconds: float) -> None:
        """The engine's thread has worked for the transcription."""
        self._busy_s += seconds

    def raise_if_ended(self) -> None:
        """Raises TranscriptionCancelled or DecodingLimitExceeded."""
        if self.cancelled():
            raise TranscriptionCancelled
        if self._busy_s > self._max_busy_s:
            raise DecodingLimitExceeded

    def features_of(self, mel: Mel) -> Tensor | None:
        """The features of this window if it was encoded for the detection of its language.

        A recording of 30 s and more begins with the very window in which its language is detected.
        """
        if self.detected is None:
            return None
        detected, features = self.detected
        return features if detected == mel else None

    def usage(self, language_probability: float | None = None) -> Usage:
        occupancy = self._windows_in_steps / self._steps if self._steps else 0.0
        return Usage(
            self._queue_s,
            self._windows,
            occupancy,
            language_probability,
            self._busy_s,
            self._steps,
        )


class TaskState(enum.Enum):
    """See `Task`."""

    PENDING = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    WITHDRAWN = enum.auto()


@dataclass(eq=False)
class Task:
    """One thing that a transcription asks the engine's thread for, and waits for.

        submitted ─► waiting ─► ready ─► in work ─┬─ succeed ──► SUCCEEDED
               │                  ▲               ├─ fail ─────► FAILED
               └──────────────────┘               └─ withdraw ─► WITHDRAWN
           without a need for a slot

    The task is PENDING until one of the three calls ends it. `TaskQueues` knows where a pending
    task is: a task waits for a slot unless it needs none or its transcription has one, then it is
    ready for the engine's thread. `fail` (cancelled, closed) and `withdraw` (the caller's wait was
    interrupted) may end it at any point of its way. The first of these calls counts, and later
    ones change nothing. `TaskQueues` makes them under its lock.

    needs_slot: whether the task can be done only for a transcription that has a slot
    submitted: when the task was made, in seconds of `time.monotonic`
    """

    needs_slot: ClassVar[bool] = True

    transcription: Transcription
    submitted: float = field(default_factory=time.monotonic, init=False)
    state: TaskState = field(default=TaskState.PENDING, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _result: Any = field(default=None, init=False, repr=False)
    _error: Exception | None = field(default=None, init=False, repr=False)

    @property
    def pending(self) -> bool:
        return self.state is TaskState.PENDING

    def succeed(self, result: Any) -> bool:
        """Wake the caller with a result. False if the task had ended before."""
        if not self.pending:
            return False
        self._result = result
        self._end(TaskState.SUCCEEDED)
        return True

    def fail(self, error: Exception) -> bool:
        """Wake the caller with an error. False if the task had ended before."""
        if not self.pending:
            return False
        self._error = error
        self._end(TaskState.FAILED)
        return True

    def withdraw(self) -> bool:
        """The caller no longer waits. False if the task had ended before."""
        if not self.pending:
            return False
        self._end(TaskState.WITHDRAWN)
        return True

    def wait(self) -> Any:
        """Block until the task has ended.

        Returns the result of `succeed`, raises the error of `fail`.
        """
        self._ended.wait()
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            # The traceback refers to this task. A reference back would make a cycle, which would
            # keep the recording in memory until the garbage collector runs.
            self._error = None

    def _end(self, state: TaskState) -> None:
        self.state = state
        self._ended.set()


@dataclass(eq=False)
class MelTask(Task):
    """Compute a spectrogram; `pieces` computes one piece at each step. Result: a Spectrogram."""

    needs_slot = False

    pieces: Generator[None, None, Spectrogram]


@dataclass(eq=False)
class DetectTask(Task):
    """Detect the language of a window. Result: the probability of each language's code."""

    mel: Mel


@dataclass(eq=False)
class DecodeTask(Task):
    """Decode a window. Result: an Outcome.

    number: of this decoding in its transcription, which decides the random draws
    """

    mel: Mel
    plan: DecodePlan
    number: int


@dataclass(eq=False)
class AlignTask(Task):
    """Align a text with the window that was decoded last. Result: AttendedFrames."""

    passage: Passage
