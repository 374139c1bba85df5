"""Requests that wait for a replica with room."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


class DispatchQueue:
    """Requests are dispatched one at a time, in order of arrival."""

    def __init__(self) -> None:
        self._dispatching = asyncio.Lock()
        self._requests: list[_Queued] = []

    @asynccontextmanager
    async def head(
        self, on_windows_ahead: Callable[[int], None]
    ) -> AsyncIterator[None]:
        """Wait until the request is at the head of the queue, and keep it there in the block.

        on_windows_ahead: called with the number of windows that come before the request's first
            one, when the request has to wait for a replica and whenever the number changes
        """
        request = _Queued(on_windows_ahead)
        self._requests.append(request)
        try:
            async with self._dispatching:
                yield
        finally:
            self._requests.remove(request)

    def replicas_full(self, windows_waiting: int) -> None:
        """Report to every request in the queue how many windows are ahead of it.

        windows_waiting: how many windows wait at the replica that the head has asked
        """
        for position, request in enumerate(self._requests):
            # Each request in front has one window or more.
            request.update(windows_waiting + position)


@dataclass(eq=False)
class _Queued:
    on_windows_ahead: Callable[[int], None]
    windows_ahead: int | None = None

    def update(self, windows_ahead: int) -> None:
        if windows_ahead != self.windows_ahead:
            self.windows_ahead = windows_ahead
            self.on_windows_ahead(windows_ahead)
