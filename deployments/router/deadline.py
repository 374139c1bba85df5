"""How long one request may be with a replica."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.contract.errors import RequestTimeoutError


class Deadline:
    """`request_timeout_s` of one request, which runs while the request is with a replica.

    The start of the model is not counted: it has a limit of its own.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._spent = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises RequestTimeoutError when the time is used up."""
        started = time.monotonic()
        timer = asyncio.timeout(self._limit - self._spent)
        try:
            async with timer:
                yield
        except TimeoutError:
            # A replica may raise a TimeoutError of its own.
            if not timer.expired():
                raise
            raise RequestTimeoutError(
                f"The request took longer than the limit of {self._limit:g} s"
                " (request_timeout_s)"
            ) from None
        finally:
            self._spent += time.monotonic() - started
