"""A load-balancing worker on a router that drains when it is told to. No Ray cluster.

python -m tests.support.drained_router: prints what happens; the router's one request is done when a
line comes on stdin.
"""

import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from deployments.router.in_flight import DrainState
from deployments.runpod import load_balancing


def say(text: str) -> None:
    print(text, flush=True)


def first_time(text: str) -> Callable[[], Coroutine[Any, Any, None]]:
    """Says the text when it is called for the first time."""
    texts = [text]

    async def call() -> None:
        if texts:
            say(texts.pop())

    return call


class Router:
    """Stands for the application's handle."""

    def __init__(self) -> None:
        # The first look of the watch: by then the handlers of signals are set.
        self.health = SimpleNamespace(remote=first_time("serving"))
        self._in_work = 1

    def broadcast(self, method: str) -> "Router":
        assert method == "drain"
        return self

    def results(self, **_: Any) -> list[DrainState]:
        say(f"in work: {self._in_work}")
        if self._in_work:
            sys.stdin.readline()
            self._in_work = 0
            return [DrainState(1, 1000.0)]
        return [DrainState(0, 1000.0)]


if __name__ == "__main__":
    alive = load_balancing.serve_http(cast(Any, Router()), lambda: say("stopping"))
    say("alive" if alive else "died")
