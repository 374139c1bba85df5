"""Places for downloads, so that slow hosts and busy callers cost themselves alone.

A place cannot be taken back from a host that turns out to be slow, so no host and no API key may
ever hold all of them. How many each may hold depends on how many are free, as in the dynamic
thresholds of switches that share their memory (Choudhury and Hahne, 1998): one that is alone gets
many, each gets fewer the more there are, and some stay free for whoever comes next.
"""

import asyncio
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from deployments.contract.errors import OverloadedError
from deployments.keys import NO_KEY

# A place is given where more than this is free: eight times what the host holds, and a third of
# what the key holds. One host alone gets a ninth of all places, and one key whose files are on many
# hosts three quarters. Of 256, twenty hosts with any number of slow URLs each leave some free.
_FREE_PER_PLACE_OF_HOST = 8
_PLACES_OF_KEY_PER_FREE = 3
# A host may have three times as many waiting as the queue has room for: three quarters at most.
_WAITING_OF_HOST_PER_FREE = 3


class DownloadPlaces:
    """Places that downloads hold, with a queue for each API key.

    Free places go to the keys in turn, and within a key in order of arrival. A download whose host
    or key may hold no more is overtaken. To be used in one event loop.

    size: how many downloads may be in progress
    max_waiting: how many more may wait, of one host the most of them; further ones are refused
    """

    def __init__(self, size: int, max_waiting: int) -> None:
        self._size = size
        self._max_waiting = max_waiting
        self._held_by_host: Counter[str] = Counter()
        self._held_by_key: Counter[str] = Counter()
        self._waiting_by_host: Counter[str] = Counter()
        # By key and by host, each in order of arrival; the key whose turn it is comes first.
        self._queues: OrderedDict[str, dict[str, deque[_Turn]]] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def held(self) -> int:
        return self._held_by_key.total()

    @property
    def waiting(self) -> int:
        return self._waiting_by_host.total()

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

        Raises OverloadedError where too many wait, all in all or for this host.
        """
        given = asyncio.get_running_loop().create_future()
        turn = _Turn(key, host, next(self._numbers), given)
        self._join(turn)
        self._give()
        if not given.done():
            if self._too_many_wait(host):
                self._withdraw(turn)
                raise OverloadedError(
                    "Too many downloads wait, all in all or for this host"
                    f" ({self._max_waiting}, max_waiting_requests): try again later"
                )
            on_wait()
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():
                self._leave(turn)
            elif turn.waits:
                self._withdraw(turn)
            raise
        try:
            yield
        finally:
            self._leave(turn)

    def _too_many_wait(self, host: str) -> bool:
        free = self._max_waiting - self.waiting
        before = self._waiting_by_host[host] - 1
        return free < 0 or before > _WAITING_OF_HOST_PER_FREE * free

    def _join(self, turn: "_Turn") -> None:
        hosts = self._queues.setdefault(turn.key, {})
        hosts.setdefault(turn.host, deque()).append(turn)
        self._waiting_by_host[turn.host] += 1

    def _withdraw(self, turn: "_Turn") -> None:
        turn.waits = False
        hosts = self._queues[turn.key]
        hosts[turn.host].remove(turn)
        if not hosts[turn.host]:
            del hosts[turn.host]
        if not hosts:
            del self._queues[turn.key]
        _count_down(self._waiting_by_host, turn.host)

    def _leave(self, turn: "_Turn") -> None:
        _count_down(self._held_by_host, turn.host)
        _count_down(self._held_by_key, turn.key)
        self._give()

    def _give(self) -> None:
        while (turn := self._next()) is not None:
            self._withdraw(turn)
            # Its caller has left, and does not know yet that it waits no longer.
            if turn.given.cancelled():
                continue
            if turn.key in self._queues:
                self._queues.move_to_end(turn.key)
            self._held_by_host[turn.host] += 1
            self._held_by_key[turn.key] += 1
            turn.given.set_result(None)

    def _next(self) -> "_Turn | None":
        """Whose turn it is, of those who may hold a place more."""
        free = self._size - self.held
        for key, hosts in self._queues.items():
            # Callers without a key cannot be told apart: they are not one caller with many files.
            of_key = 0 if key == NO_KEY else self._held_by_key[key]
            may_be_held = free - of_key / _PLACES_OF_KEY_PER_FREE
            heads = (
                queue[0]
                for host, queue in hosts.items()
                if self._held_by_host[host] * _FREE_PER_PLACE_OF_HOST < may_be_held
            )
            first = min(heads, key=lambda turn: turn.number, default=None)
            if first is not None:
                return first
        return None


def _count_down(counts: Counter[str], name: str) -> None:
    """Names of which there are none must not stay: hosts are any text that a caller sends."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


@dataclass(eq=False)
class _Turn:
    """A download that waits for its place."""

    key: str
    host: str
    number: int
    given: asyncio.Future[None]
    waits: bool = True
