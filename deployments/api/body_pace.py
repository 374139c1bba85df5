"""How fast a request's body has to come."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from deployments.audio.sizes import size_text
from deployments.audio.throughput import Throughput, window_s
from deployments.config import AppArgs
from deployments.contract.errors import RequestTimeoutError


class BodyPace:
    """Bounds of one body: its silences, its throughput and its whole time.

    clock: as `time.monotonic`

    The throughput counts the time alone in which the service waits for the caller, not the time in
    which the service writes to its disk.
    """

    def __init__(
        self, args: AppArgs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._args = args
        self._clock = clock
        self._deadline = clock() + args.request_timeout_s
        self._waited_s = 0.0
        self._window_s = window_s(args.read_timeout_s)
        self._throughput = Throughput(
            args.min_bytes_per_s, self._window_s, lambda: self._waited_s
        )
        self._throughput.begin()

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait in the block for the next piece. Raises RequestTimeoutError if it does not come."""
        began = self._clock()
        left_s = self._deadline - began
        try:
            async with asyncio.timeout(min(self._args.read_timeout_s, left_s)):
                yield
        except TimeoutError:
            if left_s > self._args.read_timeout_s:
                raise RequestTimeoutError(
                    f"No more of the request body came within {self._args.read_timeout_s:g} s"
                    " (read_timeout_s)"
                ) from None
            raise RequestTimeoutError(
                f"The request body did not come within {self._args.request_timeout_s:g} s"
                " (request_timeout_s)"
            ) from None
        self._waited_s += self._clock() - began

    def received(self, n_bytes: int) -> None:
        """Raises RequestTimeoutError where the body comes too slowly."""
        self._throughput.received(n_bytes)
        if self._throughput.too_slow():
            least = size_text(round(self._args.min_bytes_per_s))
            raise RequestTimeoutError(
                f"The request body comes too slowly: less than {least} a second over"
                f" {self._window_s:g} s (min_bytes_per_s)"
            )
