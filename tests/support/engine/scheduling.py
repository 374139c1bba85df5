"""A scheduler whose model follows a script: each window says how it is decoded and fails.

What happens is recorded, and the rules of scheduling are checked at every step.
"""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from deployments.engine import TranscriptionCancelled
from deployments.engine.decoding.batch import Progress
from deployments.engine.model_runner import ModelRunner
from deployments.engine.queues import TaskQueues
from deployments.engine.scheduler import NotANumberError, Scheduler
from deployments.engine.tasks import (
    DecodeTask,
    DetectTask,
    MelTask,
    Task,
    Transcription,
)
from deployments.engine.upstream.model_facts import ModelFacts
from tests.support.engine.calls import PATIENCE_S, until
from tests.support.engine.tiny_whisper import DIMENSIONS


class BadWindow(Exception):
    pass


Fate = Literal["gives NaN", "raises", "is cancelled"]

ERRORS: dict[Fate, type[Exception]] = {
    "gives NaN": NotANumberError,
    "raises": BadWindow,
    "is cancelled": TranscriptionCancelled,
}


@dataclass(frozen=True)
class Window:
    """A window and what becomes of it.

    tries: how many steps it takes at each of its temperatures; the first step reads the prompt
    fate: what happens to it at its first temperature
    step: the step in which that happens
    """

    tries: tuple[int, ...] = (1,)
    fate: Fate | None = None
    step: int = 0


@dataclass(frozen=True)
class Recording:
    """A recording that is to be transcribed.

    arrival: how many steps the scheduler has done before it comes
    pieces: number of pieces of its spectrogram
    """

    windows: Sequence[Window]
    arrival: int = 0
    pieces: int = 1
    language_is_detected: bool = False

    def expected(self) -> tuple[list[int], type[Exception] | None]:
        """The outcomes of all tries, and the error that the recording ends with."""
        outcomes: list[int] = []
        for window in self.windows:
            if window.fate is not None:
                if window.fate == "is cancelled" and window.step == window.tries[0] - 1:
                    # The cancellation comes too late for this try.
                    outcomes.append(window.tries[0])
                    if len(window.tries) == 1 and window is self.windows[-1]:
                        return outcomes, None
                return outcomes, ERRORS[window.fate]
            outcomes += window.tries
        return outcomes, None


class Run:
    """One recording's way through the scheduler, in a thread of its own."""

    def __init__(self, number: int, recording: Recording, stage: "Stage") -> None:
        self.number = number
        self.recording = recording
        self.stage = stage
        self.transcription = Transcription(lambda: self.gives_up)
        self.gives_up = False
        self.outcomes: list[int] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start the thread, and wait until the scheduler knows of the recording."""
        self.thread.start()
        until(lambda: self.has_come)

    @property
    def has_come(self) -> bool:
        waits = self in self.stage.waiting_runs()
        return waits or self.piece in self.stage.events or self.error is not None

    @property
    def piece(self) -> str:
        return f"piece of {self.number}"

    def _work(self) -> None:
        run_task = self.stage.scheduler.run_task
        release = self.stage.queues.release
        try:
            run_task(MelTask(self.transcription, self._pieces()))
            for number, window in enumerate(self.recording.windows):
                mel = cast(Any, NumberedWindow(self.number, number))
                if number == 0 and self.recording.language_is_detected:
                    run_task(DetectTask(self.transcription, mel))
                for attempt in range(len(window.tries)):
                    plan = cast(Any, Attempt(self, window, attempt))
                    task = DecodeTask(self.transcription, mel, plan, 0)
                    self.outcomes.append(run_task(task))
                release(self.transcription)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            release(self.transcription)

    def _pieces(self) -> Generator[None, None, Any]:
        for _ in range(self.recording.pieces):
            self.stage.events.append(self.piece)
            yield
        return None


@dataclass(frozen=True)
class NumberedWindow:
    """Stands for a window's spectrogram: the numbers of the window and of its recording."""

    recording: int
    number: int

    def tensor(self) -> Tensor:
        return torch.tensor([[float(self.recording), float(self.number)]])


@dataclass(eq=False)
class Attempt:
    """A window at one of its temperatures."""

    run: Run
    window: Window
    number: int
    done: int = 0  # how many steps it has taken

    @property
    def is_over(self) -> bool:
        return self.done == self.window.tries[self.number]

    def meets(self, fate: Fate) -> bool:
        window = self.window
        return window.fate == fate and self.number == 0 and self.done == window.step


class WatchedQueues(TaskQueues):
    """Checks in what order slots are given.

    turns: how many turns the scheduler has begun
    overtaken: how often each other transcription was given a slot while a task waited for one
    """

    def __init__(self, stage: "Stage", slots: int) -> None:
        super().__init__(slots)
        self.turns = 0
        self.overtaken: dict[Task, Counter[Transcription]] = {}
        self._stage = stage
        self._left: list[Task] = []

    def wait_for_work(self, poll_s: float) -> bool:
        self.turns += 1
        return super().wait_for_work(poll_s)

    def hand_out_slots(self) -> None:
        with self._changed:
            before = self.waiting
            still_there = [task for task in self._left if task in before]
            self._stage.demand(before[: len(still_there)] == still_there, "order")
            super().hand_out_slots()
            self._left = self.waiting
        given = before[: len(before) - len(self._left)]
        self._stage.demand(given + self._left == before, "order of slots")
        for waiting in self._left:
            counts = self.overtaken.setdefault(waiting, Counter())
            counts.update(task.transcription for task in given)
            self._stage.demand(max(counts.values(), default=0) <= 1, "fairness")


class ScriptedModel:
    """Stands for spectrograms, encoder, decoder and batch of a scheduler."""

    def __init__(self, stage: "Stage") -> None:
        self.stage = stage
        self.attempts: dict[int, Attempt] = {}  # by slot
        self.heard: dict[int, tuple[int, int]] = {}

    def __call__(self, mels: Tensor) -> Tensor:
        return mels

    def first_token_logits(self, features: Tensor, token: int) -> Tensor:
        return torch.zeros(len(features), DIMENSIONS.n_vocab)

    def write_cross_kv(self, slot: int, features: Tensor) -> None:
        run, window = map(int, features[0].tolist())
        self.heard[slot] = (run, window)
        self.stage.begun.append((run, window))

    def join(
        self, slots: Sequence[int], plans: Sequence[Any], numbers: Sequence[int]
    ) -> Progress:
        self._raise_if_bad(plans)
        for slot, plan in zip(slots, plans, strict=True):
            run, window = self.heard[slot]
            self.stage.demand(run == plan.run.number, "audio of another recording")
            right = plan.run.recording.windows[window] is plan.window
            self.stage.demand(right, "audio of another window")
            self.attempts[slot] = plan
        return self._go_on(slots)

    def step(self, slots: Sequence[int]) -> Progress:
        stage, attempts = self.stage, [self.attempts[slot] for slot in slots]
        stage.demand(0 < len(slots) <= stage.slots, "too many")
        stage.demand(len({a.run for a in attempts}) == len(slots), "two of a run")
        for slot, attempt in zip(slots, attempts, strict=True):
            run = attempt.run
            stage.demand(run.transcription.slot == slot, "slot")
            stage.demand(slot not in stage.queues.free_slots, "free slot")
            stage.demand(not run.gives_up, "cancelled")
            stage.demand(run.error is None and not attempt.is_over, "over")
        self._raise_if_bad(attempts)
        stage.events.append("step")
        progress = self._go_on(slots)
        stage.after_step()
        return progress

    def outcome(self, slot: int) -> int:
        return self.attempts[slot].done

    def clear(self, slot: int) -> None:
        self.heard.pop(slot, None)

    def _raise_if_bad(self, attempts: Sequence[Attempt]) -> None:
        if any(attempt.meets("raises") for attempt in attempts):
            raise BadWindow

    def _go_on(self, slots: Sequence[int]) -> Progress:
        progress = Progress([], [])
        for slot in slots:
            attempt = self.attempts[slot]
            if attempt.meets("gives NaN"):
                progress.broken.append(slot)
            if attempt.meets("is cancelled"):
                attempt.run.gives_up = True
            attempt.done += 1
            if attempt.is_over:
                progress.done.append(slot)
        return progress


@dataclass
class Stage:
    """Recordings that come to a scheduler.

    together: how many windows are encoded together
    closes_after: the number of steps after which the scheduler is closed
    cancel_poll_s: see `Scheduler`; 0: callers are asked in every turn
    events: steps, and pieces of spectrograms, in order
    begun: windows in order, each as the numbers of recording and window
    problems: rules that did not hold
    """

    recordings: Sequence[Recording]
    slots: int
    together: int = 1
    closes_after: int | None = None
    cancel_poll_s: float = 0.1
    events: list[str] = field(default_factory=list)
    begun: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs: list[Run] = []
        self.queues = WatchedQueues(self, self.slots)
        model: Any = ScriptedModel(self)
        facts = ModelFacts(DIMENSIONS, torch.device("cpu"), True, 99)
        runner = ModelRunner(
            facts, facts.tokenizer, model, model, model, model, alignment_heads={}
        )
        self.scheduler = Scheduler(
            runner,
            self.queues,
            encoder_windows=self.together,
            cancel_poll_s=self.cancel_poll_s,
        )
        self.runs += [Run(n, r, self) for n, r in enumerate(self.recordings)]
        self._to_come = sorted(self.runs, key=lambda run: run.recording.arrival)
        self._coming = threading.Lock()
        self._steps = 0

    def waiting_runs(self) -> list[Run]:
        """Runs that wait for the scheduler."""
        waiting = {task.transcription for task in self.queues.pending}
        return [run for run in self.runs if run.transcription in waiting]

    def demand(self, holds: bool, rule: str) -> None:
        if not holds:
            self.problems.append(rule)

    def after_step(self) -> None:
        self._steps += 1
        self._start(lambda run: run.recording.arrival <= self._steps)
        if self._steps == self.closes_after:
            self.scheduler.close()

    def play(self) -> "Stage":
        """Run until every recording has come to an end."""
        self._start(lambda run: run.recording.arrival == 0)
        for run in sorted(self.runs, key=lambda run: run.recording.arrival):
            # If no window takes steps any more, the next recording comes at once.
            self._start(lambda coming, run=run: coming is run)  # type: ignore[misc]
            run.thread.join(PATIENCE_S)
            assert not run.thread.is_alive()
        return self

    def close(self) -> None:
        self.scheduler.close()
        assert self.scheduler.join(PATIENCE_S)

    def _start(self, due: Callable[[Run], bool]) -> None:
        with self._coming:
            coming = [run for run in self._to_come if due(run)]
            self._to_come = [run for run in self._to_come if run not in coming]
            for run in coming:
                run.start()
