"""What a phase of a measurement works with: the device, the time left, a place for its figures."""

import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


def append(out: Path, **line: Any) -> None:
    """Append one line of JSON to results.jsonl at once, so that a later failure cannot lose it."""
    text = json.dumps(line)
    with (out / "results.jsonl").open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


@dataclass(frozen=True)
class Run:
    """One phase on one device.

    tiny: whether models and numbers of calls are so small that everything takes milliseconds
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

    def report(self, measure: str, **figures: Any) -> None:
        at_s = round(time.monotonic() - self.began, 2)
        append(self.out, phase=self.phase, measure=measure, **figures, at_s=at_s)

    def attempt(self, what: str, work: Callable[[], Any], seconds: float = 1) -> None:
        """Run a part of the phase if that many seconds are left.

        The phase goes on after a part that fails or has no time; either is reported.
        """
        if self.seconds_left < (0 if self.tiny else seconds):
            self.report("left out", what=what, reason=f"{seconds:.0f} s are needed")
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - one figure must not cost the others
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self.report("failed", what=what, reason=reason)
        self.empty_cache()

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def empty_cache(self) -> None:
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
        """Seconds of one of `calls` calls in a row: the median of three rounds after a warm-up."""
        calls = 1 if self.tiny else calls

        def all_calls() -> None:
            for _ in range(calls):
                work()

        self.seconds(work)
        return statistics.median(self.seconds(all_calls) for _ in range(3)) / calls
