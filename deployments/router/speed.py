"""How fast a model works, and what follows for those who wait."""

import random
import time
from collections.abc import Callable

# Each request that ends leaves this much of what the earlier ones have told.
_MEMORY = 0.95
# OpenAI's clients ignore a longer wait than a minute, and then ask again at once.
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1, 60
_JITTER = 0.2


class Speed:
    """Seconds of audio that a model's replicas finish per second in which they have work.

    Requests that are worked on together share the time: each one takes its part of every second.
    So a recording of hours, whose audio is counted at its end, does not distort what is measured
    meanwhile.

    clock: as `time.monotonic`
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._looked_at = clock()
        # Seconds that a request would have got as its part, had it run from the beginning on.
        self._part = 0.0
        self._audio_s = self._busy_s = 0.0

    @property
    def per_s(self) -> float | None:
        """None until a request has ended with a result."""
        return self._audio_s / self._busy_s if self._busy_s else None

    def begin(self) -> float:
        """A replica has begun to work on a request. Give the result to `end`."""
        self._advance()
        self._running += 1
        return self._part

    def end(self, begun: float, audio_s: float | None) -> None:
        """A replica has ended a request.

        audio_s: seconds of its audio; None where it has failed or was cancelled, which says nothing
            of the model's speed
        """
        self._advance()
        self._running -= 1
        if audio_s is not None:
            self._audio_s = _MEMORY * self._audio_s + audio_s
            self._busy_s = _MEMORY * self._busy_s + self._part - begun

    def _advance(self) -> None:
        now = self._clock()
        if self._running:
            self._part += (now - self._looked_at) / self._running
        self._looked_at = now


def retry_after_s(
    wait_s: float | None, jitter: Callable[[float, float], float] = random.uniform
) -> int | None:
    """`Retry-After` for a wait; None where the wait is not known.

    The jitter keeps callers who were refused together from returning together.

    jitter: as `random.uniform`
    """
    if wait_s is None:
        return None
    seconds = wait_s * jitter(1 - _JITTER, 1 + _JITTER)
    return round(min(max(seconds, _SHORTEST_RETRY_S), _LONGEST_RETRY_S))
