"""A load-balancing worker on a router that drains when it is told to. No Ray cluster.

python -m tests.support.drained_router: prints what happens; the router's requests are done when a
line comes on stdin.
"""

import asyncio
import sys
from typing import Any, cast

from deployments.runpod import load_balancing


class _Method:
    def __init__(self, wait_for_line: bool = False) -> None:
        self._wait_for_line = wait_for_line

    async def remote(self) -> None:
        if self._wait_for_line:
            print("drain", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            print("drained", flush=True)
        elif not _Method.answered:
            _Method.answered = True
            # The first answer comes when the watch runs, and the handlers of signals with it.
            print("serving", flush=True)

    answered = False


class _Router:
    health = _Method()
    drain = _Method(wait_for_line=True)


if __name__ == "__main__":
    alive = load_balancing.serve_http(
        cast(Any, _Router()), lambda: print("stopping", flush=True)
    )
    print("alive" if alive else "died", flush=True)
