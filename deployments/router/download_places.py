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

# A place is given where more than this is free: eight times what the host holds or once what its
# domain holds, and a third of what the key holds. One host alone gets a ninth of all places, one
# domain with any number of hosts a half, and one key whose files are on many domains three
# quarters. Of 256, twenty hosts with any number of slow URLs each leave some free.
_FREE_PER_PLACE_OF_HOST = 8
_FREE_PER_PLACE_OF_DOMAIN = 1
_PLACES_OF_KEY_PER_FREE = 3
# A domain may have three times as many waiting as the queue has room for: three quarters at most.
_WAITING_OF_DOMAIN_PER_FREE = 3


class DownloadPlaces:
    """Places that downloads hold, with a queue for each API key.

    Free places go to the keys in turn, and within a key in order of arrival. A download whose host
    or key may hold no more is overtaken. To be used in one event loop.

    size: how many downloads may be in progress
    max_waiting: how many more may wait, of one domain three quarters; further ones are refused
    """

    def __init__(self, size: int, max_waiting: int) -> None:
        self._size = size
        self._max_waiting = max_waiting
        self._held_by_host: Counter[str] = Counter()
        self._held_by_domain: Counter[str] = Counter()
        self._held_by_key: Counter[str] = Counter()
        self._waiting_by_domain: Counter[str] = Counter()
        # By key and by host, each in order of arrival; the key whose turn it is comes first.
        self._queues: OrderedDict[str, dict[str, deque[_Waiter]]] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def held(self) -> int:
        return self._held_by_key.total()

    @property
    def waiting(self) -> int:
        return self._waiting_by_domain.total()

    def resize(self, size: int, max_waiting: int) -> None:
        """Places beyond the new size are kept by those who hold them."""
        self._size = size
        self._max_waiting = max_waiting
        self._give()

    @asynccontextmanager
    async def one(
        self, key: str, host: str, on_wait: Callable[[], None], wait_s: float
    ) -> AsyncIterator[None]:
        """Hold one place.

        on_wait: called where there is none at once
        wait_s: how long the wait may be

        Raises OverloadedError where too many wait, all in all or for this domain, or where this one
        has waited for too long.
        """
        given = asyncio.get_running_loop().create_future()
        waiter = _Waiter(key, host, next(self._numbers), given)
        self._join(waiter)
        self._give()
        if not given.done():
            if self._too_many_wait(waiter.domain):
                self._withdraw(waiter)
                raise OverloadedError(
                    "Too many downloads wait, all in all or for this host's domain"
                    f" ({self._max_waiting}, max_waiting_requests): try again later"
                )
            on_wait()
        try:
            async with asyncio.timeout(wait_s):
                await given
        except TimeoutError:
            self._give_up(waiter)
            raise OverloadedError(
                f"The download has waited for its turn for {wait_s:g} s (request_timeout_s):"
                " try again later"
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        try:
            yield
        finally:
            self._leave(waiter)

    def _too_many_wait(self, domain: str) -> bool:
        free = self._max_waiting - self.waiting
        before = self._waiting_by_domain[domain] - 1
        return free < 0 or before > _WAITING_OF_DOMAIN_PER_FREE * free

    def _join(self, waiter: "_Waiter") -> None:
        hosts = self._queues.setdefault(waiter.key, {})
        hosts.setdefault(waiter.host, deque()).append(waiter)
        self._waiting_by_domain[waiter.domain] += 1

    def _withdraw(self, waiter: "_Waiter") -> None:
        waiter.waits = False
        hosts = self._queues[waiter.key]
        hosts[waiter.host].remove(waiter)
        if not hosts[waiter.host]:
            del hosts[waiter.host]
        if not hosts:
            del self._queues[waiter.key]
        _count_down(self._waiting_by_domain, waiter.domain)

    def _give_up(self, waiter: "_Waiter") -> None:
        """Its caller leaves, and may have got the place at the same moment."""
        if not waiter.given.cancelled():
            self._leave(waiter)
        elif waiter.waits:
            self._withdraw(waiter)

    def _leave(self, waiter: "_Waiter") -> None:
        _count_down(self._held_by_host, waiter.host)
        _count_down(self._held_by_domain, waiter.domain)
        _count_down(self._held_by_key, waiter.key)
        self._give()

    def _give(self) -> None:
        while (waiter := self._next()) is not None:
            self._withdraw(waiter)
            # Its caller has left, and does not know yet that it waits no longer.
            if waiter.given.cancelled():
                continue
            if waiter.key in self._queues:
                self._queues.move_to_end(waiter.key)
            self._held_by_host[waiter.host] += 1
            self._held_by_domain[waiter.domain] += 1
            self._held_by_key[waiter.key] += 1
            waiter.given.set_result(None)

    def _next(self) -> "_Waiter | None":
        """Whose turn it is, of those who may hold a place more."""
        free = self._size - self.held
        for key, hosts in self._queues.items():
            # Callers without a key cannot be told apart: they are not one caller with many files.
            of_key = 0 if key == NO_KEY else self._held_by_key[key]
            may_be_held = free - of_key / _PLACES_OF_KEY_PER_FREE
            heads = (
                queue[0]
                for host, queue in hosts.items()
                if self._needs_free(host) < may_be_held
            )
            first = min(heads, key=lambda waiter: waiter.number, default=None)
            if first is not None:
                return first
        return None

    def _needs_free(self, host: str) -> int:
        """More than this has to be free for one more place of a host."""
        return max(
            self._held_by_host[host] * _FREE_PER_PLACE_OF_HOST,
            self._held_by_domain[_domain(host)] * _FREE_PER_PLACE_OF_DOMAIN,
        )


def _domain(host: str) -> str:
    """What a host's owner has bought, as far as its name tells: its last two labels.

    Where whole countries register names below two labels, such as `co.uk`, their hosts share a
    domain here, which still gets half of all places.
    """
    labels = host.split(".")
    is_address = ":" in host or labels[-1].isdecimal()
    return host if is_address else ".".join(labels[-2:])


def _count_down(counts: Counter[str], name: str) -> None:
    """Names of which there are none must not stay: hosts are any text that a caller sends."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


@dataclass(eq=False)
class _Waiter:
    """A download that waits for its place."""

    key: str
    host: str
    number: int
    given: asyncio.Future[None]
    waits: bool = True

    def __post_init__(self) -> None:
        self.domain = _domain(self.host)
