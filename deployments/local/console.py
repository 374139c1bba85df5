"""What the local commands say on stderr; stdout is for results."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_INTERVAL_S = 5.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Say what goes on in the block, at its start, every few seconds and at its end."""
    done = threading.Event()
    started = time.monotonic()

    def keep_saying() -> None:
        say(f"{what} ...")
        while not done.wait(_INTERVAL_S):
            say(f"{what} ... {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=keep_saying, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"{what}: done in {time.monotonic() - started:.1f} s")
