"""Host names to addresses, bounded in time and in threads.

`getaddrinfo` takes no limit of time and cannot be cancelled, so each look-up has a thread of its
own, which is left behind where the answer does not come in time.
"""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from deployments.audio.download.addresses import IpAddress
from deployments.contract.errors import AudioHostError, OverloadedError


@dataclass(frozen=True)
class Endpoint:
    """What a socket connects to.

    sockaddr: as `socket.connect` takes it
    """

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]

    @classmethod
    def of(cls, address: IpAddress, port: int) -> "Endpoint":
        if address.version == 4:
            return cls(socket.AF_INET, (str(address), port))
        return cls(socket.AF_INET6, (str(address), port, 0, 0))


class Resolver:
    """Looks up names, at most `threads` at the same time.

    There are many threads, because the slow names of one caller would otherwise soon hold up those
    of all others.

    timeout_s: of one look-up, with the wait for a thread
    """

    def __init__(self, threads: int = 64, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._threads = threads
        self._free = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._left_behind: set[Future[list[Endpoint]]] = set()

    def look_up(self, host: str, port: int, timeout_s: float) -> list[Endpoint]:
        """Every address of a host, in the order in which they should be tried.

        timeout_s: how long the caller can wait, where that is shorter than the limit of all

        Raises socket.gaierror, AudioHostError if there is no answer in time, and OverloadedError if
        other look-ups hold all threads. Where all of them are stuck, it is raised at once.
        """
        limit_s = max(0.0, min(timeout_s, self._timeout_s))
        deadline = time.monotonic() + limit_s
        with self._lock:
            are_stuck = len(self._left_behind) == self._threads
        if not self._free.acquire(timeout=0 if are_stuck else limit_s):
            raise OverloadedError(
                "Too many host names wait to be resolved: try again later"
            )
        answer: Future[list[Endpoint]] = Future()
        # A daemon, because an executor's threads would hold up the end of the process.
        thread = threading.Thread(
            target=self._run, args=(answer, host, port), name="resolver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The system has no thread left.
            self._free.release()
            raise
        try:
            return answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            with self._lock:
                if not answer.done():
                    self._left_behind.add(answer)
        # Outside the except block, whose exception would become the context of this one.
        raise AudioHostError(f"host name not resolved within {limit_s:.1f} s")

    def _run(self, answer: Future[list[Endpoint]], host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            endpoints = [Endpoint(info[0], info[4]) for info in found]
            self._done(answer, lambda: answer.set_result(endpoints))
        except Exception as error:  # noqa: BLE001 - raised where the answer is awaited
            failure = error
            self._done(answer, lambda: answer.set_exception(failure))
        finally:
            self._free.release()

    def _done(self, answer: Future[list[Endpoint]], tell: Callable[[], None]) -> None:
        with self._lock:
            self._left_behind.discard(answer)
            tell()
