"""A Router's metrics of whole requests for Prometheus, at the metrics port of its Ray node.

Serve's proxy counts in the same way what it answers by itself.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.metrics import Counter, Gauge

# Ray's annotation allows one tag alone.
_REQUEST_TAGS: Any = ("model", "status", "reason", "key")
_AUDIO_TAGS: Any = ("model", "key")
_HELD_TAGS: Any = ("model", "state")


def count_request(
    model: str, status: int, reason: str, key: str, audio_s: float
) -> None:
    """Count one answered request.

    model: its name, or "-" where the request named none that is served
    reason: "ok", the type of the error, or "cancelled"
    key: the name of the API key, or "-"
    audio_s: seconds of audio that were transcribed
    """
    requests, audio_seconds = _counters()
    requests.inc(
        tags={"model": model, "status": str(status), "reason": reason, "key": key}
    )
    # Ray's counters refuse an increment of 0.
    if audio_s > 0:
        audio_seconds.inc(audio_s, tags={"model": model, "key": key})


def show_audio(model: str, waiting_s: float, in_work_s: float) -> None:
    """Show how many seconds of a model's audio wait, decoded, and how many are in work."""
    held = _held()
    held.set(waiting_s, tags={"model": model, "state": "waiting"})
    held.set(in_work_s, tags={"model": model, "state": "in_work"})


@functools.cache
def _held() -> "Gauge":
    from ray.serve.metrics import Gauge

    return Gauge(
        "whisper_held_audio_seconds",
        "Seconds of decoded audio that wait for places, and that have places.",
        _HELD_TAGS,
    )


@functools.cache
def _counters() -> "tuple[Counter, Counter]":
    """Made at the first request, because Serve adds its tags only where a replica runs by then."""
    # Ray reads its environment when it is imported, and the log is needed before that.
    from ray.serve.metrics import Counter

    return (
        Counter("whisper_requests", "Requests answered.", _REQUEST_TAGS),
        Counter(
            "whisper_request_audio_seconds",
            "Seconds of audio of requests that succeeded.",
            _AUDIO_TAGS,
        ),
    )
