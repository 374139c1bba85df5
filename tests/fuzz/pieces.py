"""One fuzzer's input as several values."""

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Pieces:
    """Takes values off the front of the input; what is past its end is zero or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def number(self) -> int:
        """0 to 255"""
        first, self._data = self._data[:1], self._data[1:]
        return first[0] if first else 0

    def choice(self, of: Sequence[T]) -> T:
        return of[self.number() % len(of)]

    def line(self) -> bytes:
        """Up to the next line break."""
        first, _, self._data = self._data.partition(b"\n")
        return first

    def value(self, depth: int = 3) -> Any:
        """Anything that JSON can say, and Python's NaN and infinities."""
        kind = self.number() % (8 if depth else 6)
        if kind == 0:
            return self.choice((None, True, False, "", "null", "true", "auto"))
        if kind == 1:
            return self.number() - 128
        if kind == 2:
            return struct.unpack("d", self._take(8))[0]
        if kind == 3:
            return int.from_bytes(self._take(self.number()), signed=True)
        if kind in (4, 5):
            # Lone surrogates come out of JSON, whose escapes can write them.
            return self.line().decode("utf-8", ("surrogateescape", "replace")[kind - 4])
        values = [self.value(depth - 1) for _ in range(self.number() % 5)]
        return (
            values
            if kind == 6
            else {f"{key}": value for key, value in enumerate(values)}
        )

    def fields(self, names: Sequence[str]) -> dict[str, Any]:
        """An object with some of these names, or others."""
        return {
            self.choice((*names, self.line().decode("latin-1"))): self.value()
            for _ in range(self.number() % 8)
        }

    def _take(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken.ljust(size, bytes(1))

    def rest(self) -> bytes:
        rest, self._data = self._data, b""
        return rest
