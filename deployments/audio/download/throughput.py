"""How fast a host sends, and whether that is too slow."""

import logging
import threading
import time
from collections.abc import Callable

from deployments.audio.download.limits import FetchLimits
from deployments.audio.sizes import size_text
from deployments.contract.errors import AudioHostError

logger = logging.getLogger(__name__)


class Throughput:
    """The bytes that come within windows of time that follow one another. Safe in threads.

    clock: as `time.monotonic`

    Once a window was too slow, the download is too slow for good: another try would be no faster.
    """

    def __init__(
        self, limits: FetchLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        # Bytes and seconds of the window that was too slow.
        self._slow: tuple[int, float] | None = None
        self._window_began: float | None = None
        self._received = 0

    def request_sent(self) -> None:
        """A try begins. A host that lets only its headers drip has to end with them as well."""
        self._begin(self._clock() + self._limits.read_timeout_s)

    def answer_begun(self) -> None:
        self._begin(self._clock())

    def received(self, n_bytes: int) -> None:
        with self._lock:
            self._received += n_bytes

    def pause(self) -> None:
        """The try has ended."""
        with self._lock:
            self._window_began = None

    def too_slow(self) -> bool:
        with self._lock:
            if self._slow or self._window_began is None:
                return self._slow is not None
            now = self._clock()
            seconds = now - self._window_began
            if seconds < self._limits.throughput_window_s:
                return False
            if self._received < self._limits.min_bytes_per_s * seconds:
                self._slow = self._received, seconds
            self._window_began, self._received = now, 0
            return self._slow is not None

    def check(self) -> None:
        """To be called by the download's own thread, in whose context the log line belongs.

        Raises AudioHostError where the host is too slow.
        """
        if self.too_slow() and self._slow:
            logger.warning("event=download_too_slow bytes=%d seconds=%.1f", *self._slow)
            least = size_text(round(self._limits.min_bytes_per_s))
            raise AudioHostError(
                f"the host sends too slowly: less than {least} a second over"
                f" {self._limits.throughput_window_s:g} s (min_download_bytes_per_s)"
            )

    def _begin(self, at: float) -> None:
        with self._lock:
            self._window_began, self._received = at, 0
