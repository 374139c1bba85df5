"""What a Router counts and shows for Prometheus, at the metrics port of its Ray node.

Serve's proxy counts in the same way what it answers by itself. What downloads and the disk show is
in download_metrics.py.
"""

import functools
import threading
import time
from typing import Any, Literal

# Ray exports every 10 s and drops a gauge that was not set since the last export.
_PERIOD_S = 5.0


def count_request(
    model: str, status: int, reason: str, key: str, audio_s: float
) -> None:
    """Count one answered request.

    model: its name, or "-" where the request named none that is served
    reason: "ok", the type of the error, or "cancelled"
    key: the name of the API key, or "-"
    audio_s: seconds of audio that were transcribed
    """
    requests = _metric(
        "Counter",
        "whisper_requests",
        "Requests answered.",
        ("model", "status", "reason", "key"),
    )
    requests.inc(
        tags={"model": model, "status": str(status), "reason": reason, "key": key}
    )
    # Ray's counters refuse an increment of 0.
    if audio_s > 0:
        audio_seconds = _metric(
            "Counter",
            "whisper_request_audio_seconds",
            "Seconds of audio of requests that succeeded.",
            ("model", "key"),
        )
        audio_seconds.inc(audio_s, tags={"model": model, "key": key})


def count_refused_url(reason: str) -> None:
    """Count a URL that was refused; `UrlGuard` lists the reasons."""
    counter = _metric(
        "Counter",
        "whisper_refused_urls",
        "URLs and redirects that were refused before they were fetched.",
        ("reason",),
    )
    counter.inc(tags={"reason": reason})


def count_decoder_death(reason: str) -> None:
    """Count a decoder that has died; the reason is that of `DecoderDiedError`."""
    counter = _metric(
        "Counter",
        "whisper_decoder_deaths",
        "Processes that died of the file that they decoded, or were killed at the deadline.",
        ("signal",),
    )
    counter.inc(tags={"signal": reason})


def show_audio(model: str, waiting_s: float, in_work_s: float) -> None:
    """Show how many seconds of a model's audio wait, decoded, and how many are in work."""
    _held_audio().show(model, {"waiting": waiting_s, "in_work": in_work_s})


class _HeldAudio:
    """A gauge that is set again and again, because hours may pass until its value changes."""

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self._gauge = _metric(
            "Gauge",
            "whisper_held_audio_seconds",
            "Seconds of decoded audio that wait for places, and that have places.",
            ("model", "state"),
        )
        self._seconds: dict[str, dict[str, float]] = {}
        self._period_s = period_s
        threading.Thread(target=self._repeat, daemon=True).start()

    def show(self, model: str, seconds: dict[str, float]) -> None:
        """seconds: by state"""
        self._seconds[model] = seconds
        self._set(model, seconds)

    def _repeat(self) -> None:
        while True:
            time.sleep(self._period_s)
            for model, seconds in [*self._seconds.items()]:
                self._set(model, seconds)

    def _set(self, model: str, seconds: dict[str, float]) -> None:
        for state, value in seconds.items():
            self._gauge.set(value, tags={"model": model, "state": state})


@functools.cache
def _held_audio() -> _HeldAudio:
    return _HeldAudio()


@functools.cache
def _metric(
    kind: Literal["Counter", "Gauge"], name: str, description: str, tags: Any
) -> Any:
    """Made when it is first needed, because Serve adds its tags only where a replica runs by then.

    tags: their names; Ray's own annotation allows one alone
    """
    # Ray reads its environment when it is imported, and the log is needed before that.
    import ray.serve.metrics

    return getattr(ray.serve.metrics, kind)(name, description, tags)
