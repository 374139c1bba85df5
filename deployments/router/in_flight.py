"""The requests that a Router has in work, and how it stops without cutting one off."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from deployments.contract.errors import ServiceUnavailableError

Event = TypeVar("Event")


@dataclass(frozen=True)
class DrainState:
    """How far a drain is.

    in_work: requests that are not answered yet
    left_s: seconds until those still in work are ended; negative once they have been
    """

    in_work: int
    left_s: float

    def __str__(self) -> str:
        requests = "1 request" if self.in_work == 1 else f"{self.in_work} requests"
        if self.left_s < 0:
            return f"{requests} did not end in time"
        return f"waiting for {requests}, at most {self.left_s:.0f} s"


class InFlight:
    """Counts the requests in work and, once a drain has begun, accepts no further ones.

    in_work: how many there are
    draining: whether `drain` has been called
    ended: whether the time for the requests in work has passed
    """

    def __init__(self) -> None:
        self.draining = False
        self.ended = False
        self._ends_at = 0.0
        self.in_work = 0
        self._waits: set[asyncio.Timeout] = set()

    def check_accepting(self) -> None:
        """Raises ServiceUnavailableError once a drain has begun."""
        if self.draining:
            raise ServiceUnavailableError(
                "The service is stopping and takes no new requests; send this one again"
            )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self.in_work += 1
        try:
            yield
        finally:
            self.in_work -= 1

    def drain(self, limit_s: float) -> DrainState:
        """Begin a drain, unless one has begun already; gives how far it is.

        limit_s: after this time, the requests that are still in work end with an error
        """
        now = asyncio.get_running_loop().time()
        if not self.draining:
            self.draining = True
            self._ends_at = now + limit_s
            asyncio.get_running_loop().call_at(self._ends_at, self._end)
        return DrainState(self.in_work, self._ends_at - now)

    async def until_ended(
        self, events: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        """The events. Raises ServiceUnavailableError where the time of a drain passes before."""
        async with aclosing(events):
            while True:
                async with self.interruptible():
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Raises ServiceUnavailableError out of the block once the time of a drain has passed."""
        wait = asyncio.timeout(0 if self.ended else None)
        self._waits.add(wait)
        try:
            async with wait:
                yield
        except TimeoutError:
            if not wait.expired():
                raise
            raise ServiceUnavailableError(
                "The service stops, and this request did not end within drain_timeout_s;"
                " send it again"
            ) from None
        finally:
            self._waits.discard(wait)

    def _end(self) -> None:
        self.ended = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)
