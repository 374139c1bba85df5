"""What a phase of a measurement works with: the device, the time that is left, and a place for its figures."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


class OutOfTimeError(Exception):
    """The phase has used up its time. All that it has measured is already written."""


@dataclass(frozen=True)
class Run:
    """One phase on one device.

    tiny: use models and numbers of calls that take milliseconds on a CPU, to check that everything works
    pack: the folder that `prepare` has filled
    weights: the folder where the parts of base's weights have come together
    out: the folder for figures and texts
    ends: end of the phase's time on the clock of `time.monotonic`
    """

    phase: str
    device: torch.device
    tiny: bool
    pack: Path
    weights: Path
    out: Path
    ends: float
    began: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The engine's default precision on the device."""
        return torch.float16 if self.on_gpu else torch.float32

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raises OutOfTimeError if less time than this is left. A tiny run only needs some."""
        if self.seconds_left < (0 if self.tiny else seconds):
            raise OutOfTimeError(f"{seconds:.0f} s are needed")

    def report(self, measure: str, **figures: Any) -> None:
        """Append one line of figures to results.jsonl at once, so that a later failure cannot lose it."""
        at_s = round(time.monotonic() - self.began, 2)
        line = {"phase": self.phase, "measure": measure, **figures, "at_s": at_s}
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Return unused cached memory to the GPU."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any]) -> float:
        """The duration of one call, including the work that it gives the device."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def seconds_each(self, work: Callable[[], Any], calls: int = 20) -> float:
        """The duration of each of `calls` calls in a row: the median of three rounds after one call to warm up."""
        calls = 1 if self.tiny else calls

        def all_calls() -> None:
            for _ in range(calls):
                work()

        self.seconds(work)
        return statistics.median(self.seconds(all_calls) for _ in range(3)) / calls
