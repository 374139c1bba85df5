"""Places for downloads, so that slow hosts and busy callers cost themselves alone.

A place cannot be taken back from a host that turns out to be slow, so no host and no API key may
ever hold all of them. How many each may hold depends on how many are free, as in the dynamic
thresholds of switches that share their memory (Choudhury and Hahne, 1998): one that is alone gets
many, each gets fewer the more there are, and some stay free for whoever comes next.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from deployments.contract.errors import OverloadedError

# A place is given where more than this is free: so many times what the host holds, and a third of
# what the key holds. Of 128 places one host alone gets 24, and one key whose files are on many
# hosts gets 96.
_FREE_PER_PLACE_OF_HOST = 4
_PLACES_OF_KEY_PER_FREE = 3


class DownloadPlaces:
    """Places that downloads hold, with a queue for each API key.

    Free places go to the keys in turn, and within a key in order of arrival. A download whose host
    or key may hold no more is overtaken. To be used in one event loop.

    size: how many downloads may be in progress
    max_waiting: how many more may wait; further ones are refused
    """

    def __init__(self, size: int, max_waiting: int) -> None:
        self._size = size
        self._max_waiting = max_waiting
        self._by_host: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._queues: OrderedDict[str, deque[_Turn]] = OrderedDict()

    @property
    def held(self) -> int:
        return self._by_key.total()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def resize(self, size: int, max_waiting: int) -> None:
        """Places beyond the new size are kept by those who hold them."""
        self._size = size
        self._max_waiting = max_waiting
        self._give()

    @asynccontextmanager
    async def one(
        self, key: str, host: str, on_wait: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Hold one place.

        on_wait: called where there is none at once

        Raises OverloadedError where too many wait.
        """
        turn = _Turn(host, asyncio.get_running_loop().create_future())
        self._queues.setdefault(key, deque()).append(turn)
        self._give()
        if not turn.given.done():
            if self.waiting > self._max_waiting:
                self._withdraw(key, turn)
                raise OverloadedError(
                    f"{self._max_waiting} downloads wait already (max_waiting_requests):"
                    " try again later"
                )
            on_wait()
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled():
                self._leave(key, host)
            else:
                self._withdraw(key, turn)
            raise
        try:
            yield
        finally:
            self._leave(key, host)

    def _withdraw(self, key: str, turn: "_Turn") -> None:
        queue = self._queues[key]
        queue.remove(turn)
        if not queue:
            del self._queues[key]

    def _leave(self, key: str, host: str) -> None:
        for held, name in ((self._by_host, host), (self._by_key, key)):
            held[name] -= 1
            if not held[name]:
                del held[name]
        self._give()

    def _give(self) -> None:
        while (found := self._next()) is not None:
            key, turn = found
            self._withdraw(key, turn)
            if key in self._queues:
                self._queues.move_to_end(key)
            self._by_host[turn.host] += 1
            self._by_key[key] += 1
            turn.given.set_result(None)

    def _next(self) -> "tuple[str, _Turn] | None":
        """Whose turn it is, of those who may hold a place more."""
        free = self._size - self.held
        if free <= 0:
            return None
        for key, queue in self._queues.items():
            for turn in queue:
                kept_free = (
                    _FREE_PER_PLACE_OF_HOST * self._by_host[turn.host]
                    + self._by_key[key] / _PLACES_OF_KEY_PER_FREE
                )
                if kept_free < free and not turn.given.done():
                    return key, turn
        return None


@dataclass(eq=False)
class _Turn:
    """A download that waits for its place."""

    host: str
    given: asyncio.Future[None]
