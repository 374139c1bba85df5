"""How many windows each request of a replica may have in work at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ASK_EVERY_S = 0.1


class SlotShares:
    """Divides an engine's slots among the requests that are cut into chunks.

    A request has one window at a time; one that is cut into chunks could have many. Such requests
    divide what the others leave, each with one chunk at least. Of four slots and more, a quarter
    stays free for requests that are still to come.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._whole = 0
        self._chunked = 0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """For as long as the block runs, there is a request with one window at a time."""
        with self._counted(1, 0):
            yield

    @contextmanager
    def chunked(self, slots: int) -> Iterator["Share"]:
        """For as long as the block runs, there is a request with chunks. slots: of the engine"""
        with self._counted(0, 1):
            yield Share(self, self._changed, slots)

    def most(self, slots: int) -> int:
        """How many chunks each request with chunks may have in work now. At least one."""
        left = slots - slots // 4 - self._whole
        return max(1, left // max(1, self._chunked))

    @contextmanager
    def _counted(self, whole: int, chunked: int) -> Iterator[None]:
        self._add(whole, chunked)
        try:
            yield
        finally:
            self._add(-whole, -chunked)

    def _add(self, whole: int, chunked: int) -> None:
        with self._changed:
            self._whole += whole
            self._chunked += chunked
            self._changed.notify_all()


class Share:
    """The chunks that one request has in work. Any number of threads may call."""

    def __init__(
        self, shares: SlotShares, changed: threading.Condition, slots: int
    ) -> None:
        self._shares = shares
        self._changed = changed
        self._slots = slots
        self._in_work = 0

    def take(self, over: Callable[[], bool]) -> bool:
        """Wait until one more chunk may be in work. False if `over()` returned true before."""
        with self._changed:
            while not over():
                if self._in_work < self._shares.most(self._slots):
                    self._in_work += 1
                    return True
                self._changed.wait(_ASK_EVERY_S)
        return False

    def give_back(self) -> None:
        """A chunk is no longer in work."""
        with self._changed:
            self._in_work -= 1
            self._changed.notify_all()
