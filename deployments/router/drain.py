"""The end of a Router: it is no longer ready, and finishes the requests that it has."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """Counts requests in work, and tells when there are none left.

    started: whether the Router is about to end
    """

    def __init__(self) -> None:
        self.started = False
        self._in_work = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Within it, a request is in work."""
        self._in_work += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_work -= 1
            if not self._in_work:
                self._idle.set()

    async def done(self) -> None:
        """Returns when no request is in work. Later ones are still done, and waited for."""
        self.started = True
        while self._in_work:
            await self._idle.wait()
