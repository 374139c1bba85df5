"""Whether bytes come fast enough, of a download or of an upload."""

import threading
import time
from collections.abc import Callable

# Never less than the silence that `read_timeout_s` allows, so that a silent host is told as such.
_WINDOW_S = 30.0


def window_s(read_timeout_s: float) -> float:
    """Over how long a time `min_bytes_per_s` is an average."""
    return max(_WINDOW_S, read_timeout_s + 1)


class Throughput:
    """The bytes that come within windows of time that follow one another. Safe in threads.

    min_bytes_per_s: on average over each window; 0: no minimum
    window_s: the length of a window, in seconds
    clock: as `time.monotonic`

    Once a window was too slow, it is too slow for good.
    """

    def __init__(
        self,
        min_bytes_per_s: float,
        window_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._min_bytes_per_s = min_bytes_per_s
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        # Bytes and seconds of the window that was too slow.
        self._slow: tuple[int, float] | None = None
        self._window_began: float | None = None
        self._received = 0

    @property
    def slow(self) -> tuple[int, float] | None:
        """Bytes and seconds of the window that was too slow."""
        return self._slow

    def begin(self, in_s: float = 0.0) -> None:
        """Begin a window so many seconds from now."""
        with self._lock:
            self._window_began, self._received = self._clock() + in_s, 0

    def received(self, n_bytes: int) -> None:
        with self._lock:
            self._received += n_bytes

    def pause(self) -> None:
        """Count no time until `begin`."""
        with self._lock:
            self._window_began = None

    def too_slow(self) -> bool:
        with self._lock:
            if self._slow or self._window_began is None:
                return self._slow is not None
            now = self._clock()
            seconds = now - self._window_began
            if seconds < self._window_s:
                return False
            if self._is_slow(self._received, seconds, now):
                self._slow = self._received, seconds
            self._window_began, self._received = now, 0
            return self._slow is not None

    def _is_slow(self, n_bytes: int, seconds: float, now: float) -> bool:
        """Whether a window of so many bytes and seconds, which ends now, was too slow."""
        return n_bytes < self._min_bytes_per_s * seconds
