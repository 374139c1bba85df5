"""Requests that wait, with a fair share of the audio for each API key."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class _Weighed(Protocol):
    @property
    def key(self) -> str: ...

    @property
    def seconds(self) -> float: ...


_Item = TypeVar("_Item", bound=_Weighed)


class FairQueue(Generic[_Item]):
    """Self-clocked fair queueing over keys, first come first served within a key.

    The clock counts seconds of audio. A key's first item ends its turn at the time at which the
    key's last turn ended, plus the item's own seconds; the item whose turn ends soonest comes next,
    and the clock then stands there. A key that had nothing waiting begins at the present time. So
    keys that always have something waiting get the same seconds of audio, and a short recording of
    a key that seldom asks comes before the long ones of the others.

    Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM 1994. It
    shares as deficit round robin does, and needs no quantum.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._waiting: dict[str, deque[_Item]] = {}
        # By key that has something waiting: when its last turn ended.
        self._ended: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[_Item]:
        """All items, key by key."""
        for items in self._waiting.values():
            yield from items

    def push(self, item: _Item) -> None:
        if item.key not in self._waiting:
            self._waiting[item.key] = deque()
            self._ended[item.key] = self._clock
        self._waiting[item.key].append(item)

    def heads(self) -> list[_Item]:
        """The first item of each key, in the order of their turns."""
        heads = [items[0] for items in self._waiting.values()]
        # Python's sort is stable, so of equal turns the key that has waited longest comes first.
        return sorted(heads, key=self._end)

    def take(self, head: _Item) -> None:
        """Remove an item that is the first of its key, because it is its turn."""
        end = self._end(head)
        # Whoever is taken out of order must not turn the clock back for the others.
        self._clock = max(self._clock, end)
        items = self._waiting.pop(head.key)
        items.popleft()
        del self._ended[head.key]
        if items:
            # To the end of the dict: this key has been served last.
            self._waiting[head.key] = items
            self._ended[head.key] = end

    def remove(self, item: _Item) -> None:
        """Remove an item that waits no longer. Its key is not charged for it."""
        items = self._waiting[item.key]
        items.remove(item)
        if not items:
            del self._waiting[item.key], self._ended[item.key]

    def _end(self, head: _Item) -> float:
        return self._ended[head.key] + head.seconds
