"""Calls to an engine whose work can be held up, watched and made to fail."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.model import Whisper

from deployments.engine import Engine
from deployments.engine.decoding.batch import Progress
from deployments.engine.upstream.log_mel import Mel
from tests.support.engine import devices
from tests.support.engine.tiny_whisper import as_float, recording

BRIEF: dict[str, Any] = {"language": "en", "temperature": 0.0, "sample_len": 4}
PATIENCE_S = 60
QUIET = np.zeros(16_000, dtype=np.int16)  # see `is_quiet`

Result = dict[str, Any]


def exact_engine(
    model: Whisper, max_windows: int | None = None, encoder_windows: int | None = None
) -> Engine:
    """An engine in fp32 on every device, whose tokens can be compared with official ones."""
    return Engine(
        model, max_windows, dtype=torch.float32, encoder_windows=encoder_windows
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_quiet(mel: Tensor | Mel) -> bool:
    """Whether the recording in this window is silent: silence is appended to every recording."""
    heard = (mel.tensor() if isinstance(mel, Mel) else mel)[:, :50]
    return bool((heard == heard[0, 0]).all())


def slots_of_quiet(engine: Engine, slots: Sequence[int]) -> list[int]:
    decoding = engine.scheduler.queues.decoding
    return [slot for slot in slots if is_quiet(decoding[slot].mel)]


def windows_by_slot(engine: Engine) -> dict[int | None, Mel | None]:
    """The windows whose audio is in a slot, of all transcriptions that wait for something."""
    held = [task.transcription for task in engine.scheduler.queues.pending]
    return {one.slot: one.window for one in held}


def replace(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Put a wrapper around a public method or part of an engine, which looks it up at every use."""
    assert not name.startswith("_")
    setattr(owner, name, change(getattr(owner, name)))


class Gate:
    """Lets no window take a step until it is opened; the scheduler's turns go on meanwhile."""

    def __init__(self, engine: Engine) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.error: BaseException | None = None
        replace(engine.scheduler.runner.batch, "step", self._gated)

    def _gated(self, step: Callable[[Sequence[int]], Progress]) -> Any:
        self._step = step
        return self.step

    def step(self, slots: Sequence[int]) -> Progress:
        self.entered.set()
        if not self.opened.wait(0.001):
            return Progress([], [])
        if self.error is not None:
            raise self.error
        return self._step(slots)


class StuckEncoder:
    """Holds up the engine's thread in the encoder until it is let go."""

    def __init__(self, engine: Engine) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.windows = 0
        replace(engine.scheduler.runner, "encoder", self._stuck)

    def _stuck(self, encoder: Callable[[Tensor], Tensor]) -> "StuckEncoder":
        self._encoder = encoder
        return self

    def __call__(self, mel: Tensor) -> Tensor:
        self.windows += len(mel)
        self.entered.set()
        assert self.let_go.wait(PATIENCE_S)
        return self._encoder(mel)


class Calls:
    """Starts calls to an engine one after the other, each in a thread of its own."""

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor) -> None:
        self.engine = engine
        self.threads = threads

    def start(self, seconds: float = 1, **options: Any) -> Future[Result]:
        audio = recording(seconds)
        return self.threads.submit(self.engine.transcribe, audio, **BRIEF | options)

    def running(self, seconds: float = 1, **options: Any) -> Future[Result]:
        """Start a call, and wait until it has taken a slot."""
        before = self.engine.stats().slots_in_use
        future = self.start(seconds, **options)
        until(lambda: self.engine.stats().slots_in_use == before + 1)
        return future

    def waiting(self, seconds: float = 1, **options: Any) -> Future[Result]:
        """Start a call, and wait until it waits for a slot."""
        before = self.engine.stats().windows_waiting
        future = self.start(seconds, **options)
        until(lambda: self.engine.stats().windows_waiting == before + 1)
        return future

    def submitted(self, seconds: float = 1, **options: Any) -> Future[Result]:
        """Start a call, and wait until it has given the engine's thread a task."""
        queues = self.engine.scheduler.queues
        before = len(queues.pending)
        future = self.start(seconds, **options)
        until(lambda: len(queues.pending) == before + 1)
        return future


def succeeds(future: Future[Result]) -> bool:
    return len(future.result(PATIENCE_S)["segments"]) > 0


def official(model: Whisper, audio: np.ndarray, **options: Any) -> Result:
    torch.manual_seed(0)
    result: Result = whisper.transcribe(
        devices.official(model), as_float(audio), fp16=False, **options
    )
    return result


def assert_same(ours: Result, expected: Result) -> None:
    """Compare two results: all is equal, but probabilities may be rounded differently."""
    assert (ours["text"], ours["language"]) == (expected["text"], expected["language"])
    assert_same_segments(ours["segments"], expected["segments"])


def assert_same_segments(ours: list[Result], expected: list[Result]) -> None:
    rounded = {"avg_logprob", "no_speech_prob", "words"}
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert one.keys() == other.keys()
        exact = one.keys() - rounded
        assert {key: one[key] for key in exact} == {key: other[key] for key in exact}
        for key in ("avg_logprob", "no_speech_prob"):
            assert one[key] == pytest.approx(other[key], abs=1e-3)
        assert_same_words(one.get("words", []), other.get("words", []))


def assert_same_words(ours: list[Result], expected: list[Result]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        chance, other_chance = one["probability"], other["probability"]
        assert chance == pytest.approx(other_chance, abs=1e-3)
        assert one | {"probability": 0} == other | {"probability": 0}
