"""SIGTERM and SIGINT, for a worker that first finishes its work."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM and SIGINT. Afterwards both are ignored: the process is to end."""
    event_loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        event_loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            event_loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
