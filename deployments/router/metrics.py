"""A Router's metrics of whole requests for Prometheus, at the metrics port of its Ray node.

Serve's proxy counts in the same way what it answers by itself.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.metrics import Counter

# Ray's annotation allows one tag alone.
_REQUEST_TAGS: Any = ("model", "status", "key")
_AUDIO_TAGS: Any = ("model", "key")


def count_request(model: str, status: int, key: str, audio_s: float) -> None:
    """Count one answered request.

    model: its name, or "-" where the request named none that is served
    key: the name of the API key, or "-"
    audio_s: seconds of audio that were transcribed
    """
    requests, audio_seconds = _counters()
    requests.inc(tags={"model": model, "status": str(status), "key": key})
    # Ray's counters refuse an increment of 0.
    if audio_s > 0:
        audio_seconds.inc(audio_s, tags={"model": model, "key": key})


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
