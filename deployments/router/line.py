"""The line of requests that wait for a replica with room."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


class Line:
    """Requests have their turn to ask the replicas in order of arrival."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, tell: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for the request's turn, and keep the turn until the block ends.

        tell: called with the number of windows that come before the request's first one, when it
            has to wait for a replica and whenever the number changes
        """
        waiting = _Waiting(tell)
        self._waiting.append(waiting)
        try:
            async with self._turn:
                yield
        finally:
            self._waiting.remove(waiting)

    def no_room(self, windows_waiting: int) -> None:
        """The replicas are full, and so many windows wait there: all in the line are told."""
        for position, waiting in enumerate(self._waiting):
            # Each request in front has one window or more.
            waiting.update(windows_waiting + position)


@dataclass(eq=False)
class _Waiting:
    tell: Callable[[int], None]
    windows_ahead: int | None = None

    def update(self, windows_ahead: int) -> None:
        if windows_ahead != self.windows_ahead:
            self.windows_ahead = windows_ahead
            self.tell(windows_ahead)
