"""How many bytes of request bodies the service holds at once, on disk and in memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.audio.download.limits import size_text
from deployments.contract.errors import OverloadedError


class Budget:
    """The bytes that all bodies hold together. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One body's part, which is released at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    def take(self, size: int, limit: int) -> None:
        """Raises OverloadedError where all bodies would then hold more than the limit."""
        with self._lock:
            if self.held + size > limit:
                raise OverloadedError(
                    "Other requests hold as many bytes as are allowed"
                    f" ({size_text(limit)}, max_spool_bytes): try again later"
                )
            self.held += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.held -= size


class Share:
    """What one body holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def hold(self, size: int, limit: int) -> None:
        """Hold so many bytes in all, or more if more are held already.

        limit: how many all bodies may hold

        Raises OverloadedError, after which the share is as large as before.
        """
        if size > self._size:
            self._budget.take(size - self._size, limit)
            self._size = size

    def release(self) -> None:
        size, self._size = self._size, 0
        self._budget.give_back(size)
