"""Calls of RunPod's job API that fail again and again: what the log says, and how long to wait."""

import logging
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """The pause before the next try, in seconds: doubled after each failure, up to the longest."""

    first_s: float = 0.5
    longest_s: float = 10.0

    def pause_after(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** (min(failures, 10) - 1))


class OutageLog:
    """Logs the first failure of an outage, a reminder now and then, and its end.

    call: which call of the job API it is about
    """

    def __init__(
        self, call: str, backoff: Backoff | None = None, reminder_s: float = 60.0
    ) -> None:
        self._call = call
        self._backoff = backoff or Backoff()
        self._reminder_s = reminder_s
        self._failures = 0
        self._logged_at = 0.0

    def failed(self, reason: str) -> float:
        """Note a failure; gives the seconds to wait before the next try."""
        self._failures += 1
        now = time.monotonic()
        if self._failures == 1 or now - self._logged_at > self._reminder_s:
            self._logged_at = now
            logger.warning(
                "event=job_api_unreachable call=%s failures=%d error=%s",
                *(self._call, self._failures, reason),
            )
        return self._backoff.pause_after(self._failures)

    def answered(self) -> None:
        """Note an answer: an outage is over."""
        if self._failures:
            logger.warning(
                "event=job_api_recovered call=%s failures=%d",
                *(self._call, self._failures),
            )
        self._failures = 0
