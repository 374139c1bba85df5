"""The bytes of all files as they came, uploads, base64 and downloads, until they are decoded.

They lie on the disk, and together they have a bound. What comes by itself is refused beyond it; a
download waits for its turn before it begins. Waiting for room cannot deadlock, because who waits
holds none: a share that is in use only grows, at once or not at all.

An upload holds what has come of it, because its caller decides when the rest comes. A download
holds its whole size from the start: its time is bounded, and a host that cannot send the file in
that time is given up early (`download/throughput.py`).

No API key can fill the spool with files that wait to be decoded: beside its first file, a key may
hold three times what is free for others. So alone it gets three quarters, and less the more there
are. Callers without a key cannot be told apart, so none of this holds for them.
"""

import asyncio
import io
import logging
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.audio import disk
from deployments.audio.sizes import size_text
from deployments.contract.errors import OverloadedError
from deployments.keys import NO_KEY

logger = logging.getLogger(__name__)

# What is free on the disk is looked at again whenever a file has grown by this much.
_CHECK_BYTES = 16 << 20
_HELD_OF_KEY_PER_FREE = 3


class SpoolFullError(OverloadedError):
    """Other files hold too much for a file of known size, of which nothing has been read yet.

    size: of the file, in bytes
    """

    def __init__(self, text: str, size: int) -> None:
        super().__init__(text, size)
        self.size = size

    def __str__(self) -> str:
        return str(self.args[0])


class Spool:
    """The bytes that all files hold together. Safe in threads.

    max_bytes: how many that may be; see `resize`
    held: how many they hold, of which not all need have come yet
    no_room: how often there was none, by the limit: `max_spool_bytes` or `disk`
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self.no_room = {"max_spool_bytes": 0, "disk": 0}
        self._on_disk = 0
        self._held_by_key: Counter[str] = Counter()
        # Reentrant, because the collection of a file that was left open may end in `release` at any
        # line, also within the block of a lock.
        self._lock = threading.RLock()
        self._waiting: deque[_Waiter] = deque()

    def resize(self, max_bytes: int) -> None:
        """Files that are here stay, also where they hold more than the new bound."""
        with self._lock:
            self.max_bytes = max_bytes
            self._give()

    def log_if_disk_is_smaller(self) -> None:
        usable = disk.usable_bytes() + self._on_disk
        if usable < self.max_bytes:
            logger.warning(
                "event=disk_smaller_than_spool max_spool_bytes=%d usable_bytes=%d",
                self.max_bytes,
                max(0, usable),
            )

    @contextmanager
    def share(self, key: str) -> Iterator["Share"]:
        """One file's part, which is released at the end.

        key: the name of the caller's API key
        """
        share = Share(self, key)
        try:
            yield share
        finally:
            share.release()

    def file(self, key: str) -> "SpooledFile":
        """A new temporary file, whose bytes count until it is closed."""
        return SpooledFile(Share(self, key))

    async def room(
        self, size: int, key: str, on_wait: Callable[[], None] = lambda: None
    ) -> "Share":
        """A share that holds so many bytes, once those who came before have theirs.

        Whoever waits because of what its own key holds is overtaken.

        on_wait: called where there is no room at once

        The caller releases it. Cancelling leaves nothing. Raises OverloadedError where the disk has
        no room.
        """
        waiter = _Waiter(size, Share(self, key), asyncio.get_running_loop())
        with self._lock:
            self._waiting.append(waiter)
            self._give()
            must_wait = waiter in self._waiting
        if must_wait:
            on_wait()
        try:
            await waiter.given
        except asyncio.CancelledError:
            with self._lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                waiter.share.release()
                self._give()
            raise
        try:
            self._check_disk(0)
        except OverloadedError:
            waiter.share.release()
            raise
        return waiter.share

    def check(self, share: "Share", size: int) -> None:
        """Raise what `Share.check` raises."""
        with self._lock:
            more = size - share.size
            if more <= 0:
                return
            if not (self._fits(more) and self._key_may_hold(share, more)):
                self.no_room["max_spool_bytes"] += 1
                raise SpoolFullError(self.full_text, size)
            self._check_disk(more)

    def reserve(self, share: "Share", size: int) -> None:
        """Let a share hold so many bytes in all. Raises what `Share.reserve` raises."""
        with self._lock:
            share.check_open()
            self.check(share, size)
            self._hold(share, max(0, size - share.size))

    def received(self, share: "Share", size: int) -> None:
        """Count that of a share so many bytes in all have come. Raises what `check` raises."""
        with self._lock:
            if size > share.size:
                self.reserve(share, size)
            elif size // _CHECK_BYTES > share.on_disk // _CHECK_BYTES:
                self._check_disk(0)
            # Bytes that have come are no longer among those that the disk has free.
            self._count_on_disk(share, max(size, share.on_disk))

    def release(self, share: "Share") -> None:
        """Let a share hold nothing, from now on."""
        with self._lock:
            share.is_open = False
            self._hold(share, -share.size)
            self._count_on_disk(share, 0)
            self._give()

    @property
    def full_text(self) -> str:
        return (
            "Other requests hold as many bytes as are allowed"
            f" ({size_text(self.max_bytes)}, max_spool_bytes): try again later"
        )

    def _check_disk(self, size: int) -> None:
        """Raises OverloadedError where the disk has no room for what is held and has not come yet,
        and so many further bytes."""
        if self.held - self._on_disk + size > disk.usable_bytes():
            self.no_room["disk"] += 1
            raise disk.no_room()

    def _count_on_disk(self, share: "Share", size: int) -> None:
        self._on_disk += size - share.on_disk
        share.on_disk = size

    def _fits(self, size: int) -> bool:
        return self.held + size <= self.max_bytes

    def _key_may_hold(self, share: "Share", size: int) -> bool:
        held = self._held_by_key[share.key]
        if share.key == NO_KEY or held == share.size:
            return True
        free = self.max_bytes - self.held - size
        return held + size <= _HELD_OF_KEY_PER_FREE * free

    def _hold(self, share: "Share", size: int) -> None:
        share.size += size
        self.held += size
        self._held_by_key[share.key] += size
        if not self._held_by_key[share.key]:
            del self._held_by_key[share.key]

    def _give(self) -> None:
        passed: list[_Waiter] = []
        for waiter in list(self._waiting):
            if not self._key_may_hold(waiter.share, waiter.size):
                continue
            if not self._fits(waiter.size):
                passed.append(waiter)
                continue
            # A large file is passed by small ones, but by no more bytes than it has itself: after
            # them, room is kept until it fits.
            if any(other.passed + waiter.size > other.size for other in passed):
                return
            for other in passed:
                other.passed += waiter.size
            self._waiting.remove(waiter)
            self._hold(waiter.share, waiter.size)
            waiter.give()


class Share:
    """What one file holds of a spool, until it is released.

    key: the name of its caller's API key
    size: in bytes
    on_disk: how many of them have come
    is_open: false once it was released
    """

    def __init__(self, spool: Spool, key: str) -> None:
        self.key = key
        self.size = 0
        self.on_disk = 0
        self.is_open = True
        self._spool = spool

    def check(self, size: int) -> None:
        """Raise where a file of so many bytes in all has no room now; nothing is held for it.

        Raises SpoolFullError, and OverloadedError where the disk has no room.
        """
        self._spool.check(self, size)

    def reserve(self, size: int) -> None:
        """Hold so many bytes in all, or more if more are held already, before they come.

        Raises what `check` raises. The share is then as large as before.
        """
        self._spool.reserve(self, size)

    def received(self, size: int) -> None:
        """Count that so many bytes in all have come and go to the disk.

        Raises OverloadedError where there is no room for them.
        """
        try:
            self._spool.received(self, size)
        except SpoolFullError as error:
            full = OverloadedError(str(error))
        else:
            return
        # A SpoolFullError is for files of which nothing has been read.
        raise full

    def release(self) -> None:
        """Give everything back. What comes later, from a thread that still writes, is refused."""
        self._spool.release(self)

    def check_open(self) -> None:
        if not self.is_open:
            raise ValueError("the share was released")


class SpooledFile(io.BufferedRandom):
    """A temporary file without a name: nothing is left of it where the process dies.

    Its share counts what is written to it, and is released when it is closed.
    """

    def __init__(self, share: Share) -> None:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        super().__init__(file)
        self.share = share

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        self.share.received(self.tell() + len(data))
        return super().write(data)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.share.release()


@dataclass(eq=False)
class _Waiter:
    """A share that waits until there is room for it.

    passed: bytes that got room before it because they fitted and it did not
    """

    size: int
    share: Share
    loop: asyncio.AbstractEventLoop
    passed: int = 0

    def __post_init__(self) -> None:
        self.given: asyncio.Future[None] = self.loop.create_future()

    def give(self) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self._given)

    def _given(self) -> None:
        if not self.given.done():
            self.given.set_result(None)
