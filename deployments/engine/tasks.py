"""One transcription's side of the decoding loop: what it asks for, and waits for."""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from whisper.audio import N_SAMPLES
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.tokenizer import Tokenizer

from deployments.engine.decoding.batch import Batch
from deployments.engine.upstream.decoding import ModelFacts, Outcome, Plan
from deployments.engine.upstream.mel import Mel, Spectrogram, Spectrograms
from deployments.engine.upstream.timing import AttendedFrames

Cancelled = Callable[[], bool]


class TranscriptionCancelled(Exception):
    """`cancelled()` was true; nothing more of this recording is decoded."""


class EngineClosedError(RuntimeError):
    """The engine was closed, or its thread is gone; the recording was not transcribed."""


@dataclass(frozen=True)
class Usage:
    """What a transcription has had of the engine.

    queue_s: seconds that its windows waited for a slot
    windows: how many were decoded
    occupancy: windows that decoded together in its steps, on average; 1 is alone, 0 that there was no step
    """

    queue_s: float
    windows: int
    occupancy: float
    language_probability: float | None = None


@dataclass(eq=False)
class Task:
    """Something a transcription waits for."""

    session: "Session"
    needs_slot = True
    future: Future[Any] = field(default_factory=Future, init=False)
    submitted: float = field(default_factory=time.monotonic, init=False)


@dataclass(eq=False)
class MelTask(Task):
    pieces: Generator[None, None, Spectrogram]
    needs_slot = False


@dataclass(eq=False)
class DetectTask(Task):
    mel: Mel


@dataclass(eq=False)
class DecodeTask(Task):
    mel: Mel
    plan: Plan
    number: int


@dataclass(eq=False)
class AlignTask(Task):
    tokens: Sequence[int]
    start: int  # of the text's predictions: the token before the text
    text: Sequence[int]
    frames: int


class Loop(Protocol):
    """What a session needs of the scheduler."""

    facts: ModelFacts
    tokenizer: Tokenizer
    spectrograms: Spectrograms
    batch: Batch

    def do(self, task: Task) -> Any: ...

    def release(self, session: "Session") -> None: ...


class Session:
    """One transcription's dealings with the loop. Its methods block, and raise TranscriptionCancelled and
    EngineClosedError; one thread uses it.
    """

    def __init__(self, loop: Loop, cancelled: Cancelled) -> None:
        self._loop = loop
        self.facts = loop.facts
        self.cancelled = cancelled
        self.slot: int | None = None
        # The window that the slot has heard; of one that only its language is known of, the features.
        self.window: Mel | None = None
        self.detected: tuple[Mel, Tensor] | None = None
        self.queue_s = 0.0
        self.windows = 0
        self.window_counted = False
        self.steps = 0
        self.windows_in_steps = 0
        self._decodes = 0
        self.language_probability: float | None = None

    @property
    def usage(self) -> Usage:
        occupancy = self.windows_in_steps / self.steps if self.steps else 0.0
        return Usage(self.queue_s, self.windows, occupancy, self.language_probability)

    def mel(self, audio: np.ndarray) -> Mel:
        """Of a whole recording with 30 s of silence behind it."""
        pieces = self._loop.spectrograms.in_pieces(audio, N_SAMPLES)
        spectrogram: Spectrogram = self._loop.do(MelTask(self, pieces))
        return Mel.of(spectrogram)

    def detect_language(self, mel: Mel) -> dict[str, float]:
        """The probability of each language's code."""
        probabilities: dict[str, float] = self._loop.do(DetectTask(self, mel))
        self.language_probability = max(probabilities.values())
        return probabilities

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult:
        """`whisper.decode`"""
        plan = Plan(self.facts, options)
        self._loop.batch.check_fits(plan)
        task = DecodeTask(self, mel, plan, self._decodes)
        self._decodes += 1
        outcome: Outcome = self._loop.do(task)
        return plan.result(outcome)

    def attended_frames(
        self,
        mel: Mel,
        sot_sequence: Sequence[int],
        no_timestamps: int,
        text: Sequence[int],
        frames: int,
    ) -> AttendedFrames:
        """What the tokens of `text` attend to in the window that was decoded last, which `mel` has to be."""
        if mel is not self.window:
            raise ValueError("only the window that was decoded last can be aligned")
        eot = self._loop.tokenizer.eot
        tokens = [*sot_sequence, no_timestamps, *text, eot]
        task = AlignTask(self, tokens, len(sot_sequence), text, frames)
        attended: AttendedFrames = self._loop.do(task)
        return attended

    def leave_window(self) -> None:
        """Give the slot back: nothing more is wanted of the window."""
        self._loop.release(self)
