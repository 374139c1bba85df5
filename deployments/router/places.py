"""A number of places that requests hold, given in order of arrival."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Places:
    """Like a semaphore whose size may change while places are held."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._queue: deque[asyncio.Future[None]] = deque()
        self.held = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def all_held(self) -> bool:
        return self.held >= self._size

    def resize(self, size: int) -> None:
        """Places beyond the new size are kept by those who hold them."""
        self._size = size
        self._give()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold one place, once those who came before have theirs."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._queue:
                self._queue.remove(turn)
            elif not turn.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self.held -= 1
        self._give()

    def _give(self) -> None:
        while self._queue and not self.all_held:
            turn = self._queue.popleft()
            if not turn.cancelled():
                self.held += 1
                turn.set_result(None)
