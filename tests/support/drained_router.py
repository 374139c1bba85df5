"""A load-balancing worker on a router that drains when it is told to. No Ray cluster.

python -m tests.support.drained_router: prints what happens; the router's requests are done when a
line comes on stdin.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

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


async def drain() -> None:
    say("drain")
    await asyncio.to_thread(sys.stdin.readline)
    say("drained")


if __name__ == "__main__":
    router = SimpleNamespace(
        # The first look of the watch: by then the handlers of signals are set.
        health=SimpleNamespace(remote=first_time("serving")),
        drain=SimpleNamespace(remote=drain),
    )
    alive = load_balancing.serve_http(cast(Any, router), lambda: say("stopping"))
    say("alive" if alive else "died")
