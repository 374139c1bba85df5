"""What the local commands say on stderr; stdout is for results."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_INTERVAL_S = 5.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def readable_json(value: Any, indent: str = "") -> str:
    """JSON with an indent of two, in which a list of plain values, such as tokens, is one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {readable_json(item, inner)}"
            for key, item in value.items()
        ]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        parts = [readable_json(item, inner) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    lines = f",\n{inner}".join(parts)
    return f"{opening}\n{inner}{lines}\n{indent}{closing}"


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
