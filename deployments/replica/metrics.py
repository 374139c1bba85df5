"""A replica's metrics for Prometheus, at the metrics port of its Ray node.

Ray puts `ray_` before each name.
"""

import threading
import time
from typing import TYPE_CHECKING

from ray.serve.metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from deployments.engine import Engine, EngineStats, Usage

# Ray exports every 10 s and drops a gauge that was not set since the last export.
_PERIOD_S = 5.0
# Ray computes a histogram's sum from its buckets, so narrow buckets keep the mean right.
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
_WINDOWS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32]
_TAGS = ("model",)


class EngineMetrics:
    """The metrics of one replica. Serve adds the tags deployment, replica and application."""

    def __init__(self, model: str) -> None:
        self._windows_decoded = Counter(
            "whisper_windows_decoded", "Windows of up to 30 s.", _TAGS
        )
        self._audio_seconds = Counter(
            "whisper_audio_seconds", "Seconds of audio transcribed.", _TAGS
        )
        self._slots_in_use = Gauge(
            "whisper_slots_in_use", "Windows in work together.", _TAGS
        )
        self._windows_waiting = Gauge(
            "whisper_windows_waiting", "Windows that wait for a slot.", _TAGS
        )
        self._queue_seconds = Histogram(
            "whisper_queue_seconds",
            "Seconds that the windows of a request, or its first chunk, waited for slots.",
            _SECONDS,
            _TAGS,
        )
        self._batch_occupancy = Histogram(
            "whisper_batch_occupancy",
            "Windows that decoded together, on average over the steps of a request.",
            _WINDOWS,
            _TAGS,
        )
        for metric in (
            self._windows_decoded,
            self._audio_seconds,
            self._slots_in_use,
            self._windows_waiting,
            self._queue_seconds,
            self._batch_occupancy,
        ):
            metric.set_default_tags({"model": model})

    def watch(self, engine: "Engine") -> None:
        """Report what the engine does for as long as it is alive, idle or not. Does not block."""
        threading.Thread(
            target=self._report_while_alive, args=(engine,), daemon=True
        ).start()

    def observe(self, usage: "Usage") -> None:
        """Record a request that has succeeded."""
        self._queue_seconds.observe(usage.queue_s)
        self._batch_occupancy.observe(usage.occupancy)

    def _report_while_alive(self, engine: "Engine") -> None:
        reported = engine.stats()
        while engine.alive:
            stats = engine.stats()
            self._report(stats, reported)
            reported = stats
            time.sleep(_PERIOD_S)
        self._report(engine.stats(), reported)

    def _report(self, stats: "EngineStats", reported: "EngineStats") -> None:
        self._slots_in_use.set(stats.slots_in_use)
        self._windows_waiting.set(stats.windows_waiting)
        # Ray's counters refuse an increment of 0.
        if stats.windows_done > reported.windows_done:
            self._windows_decoded.inc(stats.windows_done - reported.windows_done)
        if stats.audio_seconds_done > reported.audio_seconds_done:
            self._audio_seconds.inc(
                stats.audio_seconds_done - reported.audio_seconds_done
            )
