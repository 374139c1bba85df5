"""RunPod's SDK, made ready for a worker that loses nothing. What it lacks is put in here.

The SDK (1.12.0, pinned) takes jobs, calls the handler, posts what it returns, and sends heartbeats. By itself it
asks again at once where the job API cannot be reached, gives a result up after seven seconds, forgets a job
that arrives together with SIGTERM, and waits for its long polls, up to 90 s, before it exits.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import runpod.serverless
from aiohttp import ClientSession
from runpod.http_client import TooManyRequests
from runpod.serverless.modules import rp_http, rp_ping, rp_scale

from deployments.runpod import heartbeat as runpod_heartbeat
from deployments.runpod.job_api import Line, deliver_result, reason_of

logger = logging.getLogger(__name__)

Job = dict[str, Any]
Handler = Callable[[Job], Coroutine[Any, Any, dict[str, Any]]]

# An answer without jobs that comes as quickly as this was no long poll.
_QUICK_ANSWER_S = 0.25
_LOOK_AGAIN_S = 1.0
_BEGINS_WITHIN_S = 0.02
_TAKEN_WITHIN_S = 2.0


def run(
    handler: Handler,
    concurrency: int,
    watch: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Take and do jobs until SIGTERM or SIGINT, then finish those in work.

    concurrency: jobs in work at the same time
    watch: runs beside the jobs; once it returns no more are taken, and those in work are finished

    Raises SystemExit after the one job of `--test_input` or `test_input.json`.
    """

    class Scaler(_PatientScaler):
        async def run(self) -> None:
            watching = asyncio.ensure_future(watch())
            watching.add_done_callback(lambda _: self.kill_worker())
            try:
                await super().run()
            finally:
                watching.cancel()

    # The places that the SDK looks these up in.
    rp_scale.JobScaler = Scaler
    rp_http._transmit = deliver_result
    rp_ping.Heartbeat.process_loop = staticmethod(runpod_heartbeat.send_heartbeats)
    runpod_heartbeat.prepare()
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda _: concurrency}
    )


class _PatientScaler(rp_scale.JobScaler):
    """The SDK's loop, with pauses where the job API cannot be reached, and an end that comes soon and loses no job."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._intake_closed = asyncio.Event()
        self._room = asyncio.Event()
        self._job_take, self._job_stop = Line("job-take"), Line("job-stop")
        self.jobs_fetcher = self._fetch_jobs
        self.stop_signals_fetcher = self._fetch_stop_signals

    async def get_jobs(self, session: ClientSession) -> None:
        try:
            await super().get_jobs(session)
        finally:
            self._intake_closed.set()

    async def set_scale(self) -> None:
        """Called before each take."""
        await super().set_scale()
        # Without this the SDK looks once a second whether there is room for another job.
        while self.is_alive() and self.current_occupancy() >= self.current_concurrency:
            self._room.clear()
            await self._pause(_LOOK_AGAIN_S, self._room)

    def kill_worker(self) -> None:
        super().kill_worker()
        self._room.set()

    async def handle_job(self, session: ClientSession, job: Job) -> None:
        # While it was in the queue it was counted twice.
        self._room.set()
        try:
            await super().handle_job(session, job)
        finally:
            self._room.set()

    async def stop_job(self, job_id: str) -> bool:
        # It may have been taken and not begun, and a signal comes but once.
        while job_id not in self.jobs_tasks and self.job_progress.get(job_id):
            await asyncio.sleep(_BEGINS_WITHIN_S)
        await asyncio.sleep(_BEGINS_WITHIN_S)
        stopped: bool = await super().stop_job(job_id)
        return stopped

    async def run_jobs(self, session: ClientSession) -> None:
        until_stopped = asyncio.ensure_future(super().run_jobs(session))
        await self._intake_closed.wait()
        # What came in together with the signal to stop may have been queued after the loop's end.
        await asyncio.gather(until_stopped, super().run_jobs(session))

    async def _fetch_jobs(self, session: ClientSession, count: int) -> list[Job]:
        # There may have been no room until now, and in between the signal to stop.
        if not self.is_alive():
            return []
        started = time.monotonic()
        take = rp_scale.get_job(session, count)
        jobs = await self._answer_to(take, self._job_take, _TAKEN_WITHIN_S)
        if not jobs:
            if time.monotonic() - started < _QUICK_ANSWER_S:
                await self._pause(_QUICK_ANSWER_S)
            return []
        # Nobody could be answered, and it would end the SDK's loop.
        usable = [job for job in jobs if _is_job(job)]
        if len(usable) < len(jobs):
            logger.error("event=jobs_without_id count=%d", len(jobs) - len(usable))
        return usable

    async def _fetch_stop_signals(self, session: ClientSession) -> list[str]:
        poll = rp_scale.get_stop_signals(session)
        return await self._answer_to(poll, self._job_stop) or []

    async def _answer_to(
        self,
        poll: Coroutine[Any, Any, list[Any] | None],
        line: Line,
        grace_s: float = 0.0,
    ) -> list[Any] | None:
        """None when the worker is to stop, and after a pause when there was no answer.

        grace_s: for an answer that may be on its way when the worker is to stop
        """
        answer = asyncio.ensure_future(poll)
        stop = asyncio.ensure_future(self._shutdown_event.wait())
        try:
            await asyncio.wait({answer, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await asyncio.wait({answer}, timeout=grace_s)
            if not answer.done():
                return None
            jobs = answer.result()
        except TooManyRequests:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the worker asks again
            await self._pause(line.failed(reason_of(error)))
            return None
        finally:
            answer.cancel()
            stop.cancel()
        line.answered()
        return jobs

    async def _pause(self, seconds: float, end: asyncio.Event | None = None) -> None:
        """Until the end, or the signal to stop if none is given."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (end or self._shutdown_event).wait()


def _is_job(job: Any) -> bool:
    return isinstance(job, dict) and isinstance(job.get("id"), str)
