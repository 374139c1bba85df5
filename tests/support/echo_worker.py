"""The SDK's loop as the RunPod worker runs it, but with a handler that needs no model and does what the job says.

python -m tests.support.echo_worker CONCURRENCY
"""

import asyncio
import logging
import sys
from typing import Any

from deployments.runpod import environment as runpod_environment

_at_once = 0
_most_at_once = 0


async def handle(job: dict[str, Any]) -> dict[str, Any]:
    """Sleeps for `sleep` seconds and answers `bytes` characters; `die` ends the service."""
    global _at_once, _most_at_once
    order = job["input"]
    _at_once += 1
    _most_at_once = max(_at_once, _most_at_once)
    try:
        await asyncio.sleep(order.get("sleep", 0))
    except asyncio.CancelledError:
        print("cancelled", job["id"], file=sys.stderr, flush=True)
        raise
    finally:
        _at_once -= 1
    if order.get("die"):
        _service_died.set()
    return {"echo": "x" * order.get("bytes", 1), "most_at_once": _most_at_once}


_service_died = asyncio.Event()


async def watch() -> None:
    await _service_died.wait()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    runpod_environment.prepare()
    from deployments.runpod import loop as runpod_sdk

    runpod_sdk.run(handle, int(sys.argv[1]), watch)
    sys.exit(1 if _service_died.is_set() else 0)
