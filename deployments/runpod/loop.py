"""The worker's loop: take jobs, run them concurrently, stop a cancelled one, drain at the end."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from deployments.logs import error_location
from deployments.runpod import heartbeat, sdk
from deployments.runpod.job import Handler, Job, is_error
from deployments.runpod.job_api import JobApi
from deployments.runpod.signals import stop_signals

logger = logging.getLogger(__name__)


class JobLoop:
    """Takes jobs and runs up to `max_concurrency` of them at a time on one event loop.

    handler: gives a job's result and never raises; RunPod's cancellation of a job cancels this call
    max_concurrency: jobs in work at the same time
    grace_s: how long to wait for the job API's last answer when the worker is to stop. The answer
        may be under way, and RunPod counts its jobs as taken.
    """

    def __init__(
        self,
        api: JobApi,
        handler: Handler,
        max_concurrency: int,
        grace_s: float = 2.0,
    ) -> None:
        self._api = api
        self._handler = handler
        self._max_concurrency = max_concurrency
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._jobs: dict[asyncio.Task[None], str] = {}
        # The SDK tells the job API, and the heartbeat, which jobs are in work.
        self._in_work = sdk.JobsProgress()

    def stop(self) -> None:
        """Take no more jobs; those in work are finished."""
        self._stopping.set()

    async def stopping(self) -> None:
        """Returns after `stop`."""
        await self._stopping.wait()

    async def run(self) -> None:
        """Returns after `stop`, once all jobs in work have been done and delivered."""
        cancelling = asyncio.ensure_future(self._cancel_jobs())
        try:
            await self._take_jobs()
            while self._jobs:
                await asyncio.wait(self._jobs)
        finally:
            cancelling.cancel()

    async def _take_jobs(self) -> None:
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            while not stopped.done():
                room = self._max_concurrency - len(self._jobs)
                if room > 0:
                    for job in await self._take(room, stopped):
                        self._start(job)
                else:
                    await _first_of(stopped, *self._jobs)
        finally:
            stopped.cancel()

    async def _take(self, count: int, stopped: asyncio.Future[Any]) -> list[Job]:
        taking = asyncio.ensure_future(self._api.take(count, self._stopping))
        try:
            await _first_of(stopped, taking)
            await asyncio.wait({taking}, timeout=self._grace_s)
            return taking.result() if taking.done() else []
        finally:
            taking.cancel()

    def _start(self, job: Job) -> None:
        job_id = job["id"]
        task = asyncio.ensure_future(self._run_job(job))
        self._jobs[task] = job_id
        self._in_work.add(job_id)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_work.remove(self._jobs.pop(task))

    async def _run_job(self, job: Job) -> None:
        started = time.monotonic()
        status = "cancelled"
        try:
            result = await self._handler(job)
            await self._api.deliver(job, result)
            status = "error" if is_error(result) else "ok"
        except Exception as error:  # noqa: BLE001 - one job's failure must not end the others
            logger.error(
                "event=job_lost job=%s error=%s at=%s",
                *(job["id"], type(error).__name__, error_location(error)),
            )
            status = "error"
        finally:
            logger.info(
                "event=job_done job=%s status=%s seconds=%.3f",
                *(job["id"], status, time.monotonic() - started),
            )

    async def _cancel_jobs(self) -> None:
        async for job_id in self._api.stop_signals():
            for task in [t for t, name in self._jobs.items() if name == job_id]:
                task.cancel()


async def run_jobs(
    loop: JobLoop,
    watch: Callable[[], Coroutine[Any, Any, None]],
    drain: Callable[[], Coroutine[Any, Any, None]] | None = None,
    heartbeat_check_s: float = 5.0,
) -> None:
    """Run the loop, with heartbeats, until SIGTERM or SIGINT comes or `watch` returns.

    Jobs in work are finished.

    drain: called when the loop is to stop, and waited for as the jobs are
    heartbeat_check_s: seconds between two looks at the heartbeat's process
    """
    beating = _start_heartbeat(heartbeat_check_s)
    watching = asyncio.ensure_future(watch())
    watching.add_done_callback(lambda _: loop.stop())
    draining = asyncio.ensure_future(_at_stop(loop, drain))
    with stop_signals(loop.stop):
        try:
            await loop.run()
            await draining
        finally:
            draining.cancel()
            watching.cancel()
            if beating is not None:
                beating.cancel()


async def _at_stop(
    loop: JobLoop, drain: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    await loop.stopping()
    if drain is not None:
        await drain()


def _start_heartbeat(check_s: float) -> asyncio.Future[None] | None:
    ping = heartbeat.ping_of(os.environ, sdk.WORKER_ID, sdk.VERSION)
    if ping is None:
        return None
    process = heartbeat.Heartbeat(ping, sdk.JobsProgress().set_mirror)
    return asyncio.ensure_future(process.keep_alive(check_s))


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
