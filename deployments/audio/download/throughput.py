"""How fast a host sends, and whether that is too slow."""

import logging
import time
from collections.abc import Callable

from deployments.audio.download.limits import FetchLimits
from deployments.audio.sizes import size_text
from deployments.audio.throughput import Throughput
from deployments.contract.errors import AudioHostError

logger = logging.getLogger(__name__)

# A host may become faster, so one is given up that would take this many times the time left.
_TIMES_TOO_LONG = 2


class HostThroughput(Throughput):
    """The throughput of one download. Once a host was too slow, another try would be no faster.

    A file whose size is known holds room on the disk for all of its bytes, so its host has to be
    fast enough to send them before the download's time has run out.
    """

    def __init__(
        self, limits: FetchLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(limits.min_bytes_per_s, limits.throughput_window_s, clock)
        self._limits = limits
        self._deadline = clock() + limits.total_timeout_s
        # Bytes that are still to come; 0 where the host does not tell.
        self._missing = 0

    def request_sent(self) -> None:
        """A try begins. A host that lets only its headers drip has to end with them as well."""
        self._missing = 0
        self.begin(self._limits.read_timeout_s)

    def answer_begun(self) -> None:
        self.begin()

    def expect(self, n_bytes: int) -> None:
        """So many bytes are to come in all from now on."""
        self._missing = n_bytes

    def received(self, n_bytes: int) -> None:
        super().received(n_bytes)
        self._missing = max(0, self._missing - n_bytes)

    def check(self) -> None:
        """To be called by the download's own thread, in whose context the log line belongs.

        Raises AudioHostError where the host is too slow.
        """
        if self.too_slow() and self.slow:
            n_bytes, seconds = self.slow
            logger.warning(
                "event=download_too_slow bytes=%d seconds=%.1f", n_bytes, seconds
            )
            raise AudioHostError(self._reason(n_bytes, seconds))

    def _reason(self, n_bytes: int, seconds: float) -> str:
        if n_bytes >= self._min_bytes_per_s * seconds:
            return (
                "the host sends too slowly: the file would take far longer than"
                f" {self._limits.total_timeout_s:g} s (download_timeout_s)"
            )
        least = size_text(round(self._min_bytes_per_s))
        return (
            f"the host sends too slowly: less than {least} a second over"
            f" {self._window_s:g} s (min_bytes_per_s)"
        )

    def _is_slow(self, n_bytes: int, seconds: float, now: float) -> bool:
        if super()._is_slow(n_bytes, seconds, now):
            return True
        left_s = max(0.0, self._deadline - now)
        is_late = self._missing * seconds > _TIMES_TOO_LONG * left_s * n_bytes
        return is_late and self._min_bytes_per_s > 0
