"""A Router's metrics of downloads and of the files on its disk, for Prometheus."""

import threading
import time
import weakref
from typing import Any, Protocol

from deployments.audio.spool import Spool

# Ray exports every 10 s and drops a gauge that was not set since the last export.
_PERIOD_S = 5.0
# Ray's annotation allows one tag alone.
_NO_TAGS: Any = ()


class _Places(Protocol):
    @property
    def held(self) -> int: ...

    @property
    def waiting(self) -> int: ...


def report_downloads(
    places: _Places, spool: Spool, period_s: float = _PERIOD_S
) -> None:
    """Report for as long as the places are in use. Does not block.

    To be called at the first request: Serve adds its tags only where a replica runs by then.
    """
    threading.Thread(
        target=_report, args=(weakref.ref(places), spool, period_s), daemon=True
    ).start()


def _report(reference: "weakref.ref[_Places]", spool: Spool, period_s: float) -> None:
    # Ray reads its environment when it is imported, and the log is needed before that.
    from ray.serve.metrics import Counter, Gauge

    in_progress = Gauge(
        "whisper_downloads_in_progress", "Downloads in progress.", _NO_TAGS
    )
    waiting = Gauge("whisper_downloads_waiting", "Downloads that wait.", _NO_TAGS)
    held = Gauge(
        "whisper_spool_bytes", "Bytes of files that are not decoded yet.", _NO_TAGS
    )
    no_room = Counter(
        "whisper_spool_no_room",
        "Files for which there was no room, by what had none.",
        ("limit",),
    )
    reported: dict[str, int] = {}
    while (places := reference()) is not None:
        in_progress.set(places.held)
        waiting.set(places.waiting)
        # The thread must not be what keeps the places alive.
        del places
        held.set(spool.held)
        for limit, count in spool.no_room.items():
            # Ray's counters refuse an increment of 0.
            if count > reported.get(limit, 0):
                no_room.inc(count - reported.get(limit, 0), tags={"limit": limit})
                reported[limit] = count
        time.sleep(period_s)
