"""The requests that a Router has in work, so that it can end without cutting one off."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """Counts requests in work, and drains them before the Router ends.

    draining: whether `drain` has been called; new requests should then go elsewhere
    """

    def __init__(self) -> None:
        self.draining = False
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self) -> None:
        """Return once no request is in work. Requests that still arrive are waited for as well."""
        self.draining = True
        while self._count:
            await self._idle.wait()
