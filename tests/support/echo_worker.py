"""The RunPod worker's loop with a handler that needs no model and does what the job says.

    python -m tests.support.echo_worker MAX_CONCURRENCY

Its pauses are a twentieth of the worker's own, and its polls stay open as long as the job API
likes.
"""

import asyncio
import logging
import sys
from typing import Any

from deployments.runpod.environment import configure_environment
from tests.support.job_api import LIMIT_S

_in_work = 0
_most_in_work = 0


async def main(max_concurrency: int) -> int:
    from deployments.runpod import sdk
    from deployments.runpod.job_api import JobApi, Patience
    from deployments.runpod.loop import JobLoop, run_jobs
    from deployments.runpod.outage_log import Backoff

    backoff = Backoff(first_s=0.025, longest_s=0.5)
    patience = Patience(
        backoff=backoff, poll_s=LIMIT_S, quick_answer_s=0.0125, no_signal_s=0.05
    )
    service_died = asyncio.Event()

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        """Sleeps for `sleep` seconds and answers `bytes` characters, or an error if it is told to
        `fail`; `die` ends the service.
        """
        global _in_work, _most_in_work
        order = job["input"]
        _in_work += 1
        _most_in_work = max(_in_work, _most_in_work)
        try:
            await asyncio.sleep(order.get("sleep", 0))
        except asyncio.CancelledError:
            print("cancelled", job["id"], file=sys.stderr, flush=True)
            raise
        finally:
            _in_work -= 1
        if order.get("die"):
            service_died.set()
        if order.get("fail"):
            return {"error": "as the job says"}
        return {"echo": "x" * order.get("bytes", 1), "most_in_work": _most_in_work}

    async def watch() -> None:
        await service_died.wait()

    async with sdk.AsyncClientSession() as session:
        api = JobApi(session, patience)
        loop = JobLoop(api, handle, max_concurrency, grace_s=0.5)
        await run_jobs(loop, watch, heartbeat_check_s=0.25)
    return int(service_died.is_set())


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
    configure_environment()
    sys.exit(asyncio.run(main(int(sys.argv[1]))))
