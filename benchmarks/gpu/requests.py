"""Sends many requests to an engine at once, each from a thread of its own, as a replica does."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.audio import Recording
from deployments.engine import Engine, Usage
from deployments.replica.slot_shares import SlotShares

Result = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """The results of some requests and the time they took.

    seconds: from the start of the first request to the end of the last
    latencies: seconds of each request
    busy: the GPU's utilization in percent, ten times a second
    """

    seconds: float
    audio_seconds: float
    latencies: list[float]
    usages: list[Usage]
    busy: list[int]
    results: list[Result]

    def figures(self) -> dict[str, float | None]:
        return {
            "requests": len(self.results),
            "audio_s": self.audio_seconds,
            "seconds": self.seconds,
            "times_real_time": self.audio_seconds / self.seconds,
            "latency_p50_s": float(np.percentile(self.latencies, 50)),
            "latency_p95_s": float(np.percentile(self.latencies, 95)),
            "occupancy": float(np.mean([usage.occupancy for usage in self.usages])),
            "windows": sum(usage.windows for usage in self.usages),
            "busy_percent": float(np.mean(self.busy)) if self.busy else None,
        }


def serve(
    engine: Engine,
    recordings: Sequence[Recording],
    at_once: int,
    shares: SlotShares | None = None,
    **options: Any,
) -> Served:
    """Transcribe all recordings, `at_once` of them at the same time.

    shares: where recordings in chunks share the slots with these
    """
    usages: list[Usage] = []
    shares = shares or SlotShares()

    def transcribe(recording: Recording) -> tuple[float, Result]:
        started = time.perf_counter()
        with shares.whole():
            result = engine.transcribe(recording.pcm, on_usage=usages.append, **options)
        return time.perf_counter() - started, result

    with _watched_gpu() as busy, ThreadPoolExecutor(at_once) as callers:
        started = time.perf_counter()
        done = list(callers.map(transcribe, recordings))
        seconds = time.perf_counter() - started
    return Served(
        seconds,
        sum(recording.seconds for recording in recordings),
        [latency for latency, _ in done],
        usages,
        busy,
        [result for _, result in done],
    )


@contextlib.contextmanager
def _watched_gpu() -> Iterator[list[int]]:
    """Sample the first GPU's utilization in percent ten times a second, by NVIDIA's driver.

    The list stays empty where the driver cannot be asked.
    """
    busy: list[int] = []
    over = threading.Event()

    def watch() -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not over.wait(0.1):
                busy.append(pynvml.nvmlDeviceGetUtilizationRates(card).gpu)
        except Exception:  # noqa: BLE001 - the measurement goes on without
            return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield busy
    finally:
        over.set()
        watcher.join(2)
