"""The deadline of a download, its minimum throughput, and the departure of its caller."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from deployments.audio.download.throughput import HostThroughput
from deployments.contract.errors import AudioHostError, RequestCancelledError

_POLL_S = 0.1


class Watchdog:
    """Ends the blocking reads of one download at its deadline, when its host has become too slow,
    or when its caller has left.

    A socket's own timeout counts for each read alone, so a host that sends a byte a second never
    exceeds it.
    """

    def __init__(
        self,
        total_s: float,
        throughput: HostThroughput,
        cancelled: Callable[[], bool],
    ) -> None:
        self.total_s = total_s
        self._deadline = time.monotonic() + total_s
        self._throughput = throughput
        self._cancelled = cancelled
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.release()

    @property
    def remaining_s(self) -> float:
        return self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise if the download must not go on."""
        if self._cancelled():
            raise RequestCancelledError("The request was cancelled")
        if self.remaining_s <= 0:
            raise AudioHostError(f"timed out after {self.total_s:g} s in total")
        self._throughput.check()

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, _POLL_S))

    def watch(self, connected: socket.socket) -> None:
        # A duplicate, because the original may be closed, and its number used for another file,
        # while the watchdog shuts it.
        duplicate = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._sockets.append(duplicate)

    def release(self) -> None:
        """Forget all connections: the try that made them has ended."""
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def _run(self) -> None:
        while not self._done.wait(_POLL_S):
            if (
                self.remaining_s <= 0
                or self._throughput.too_slow()
                or self._cancelled()
            ):
                with self._lock:
                    for sock in self._sockets:
                        with suppress(OSError):
                            sock.shutdown(socket.SHUT_RDWR)
