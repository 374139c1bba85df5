"""RunPod's job API, used with patience.

While it cannot be reached, jobs are asked for with pauses. A result is posted until it is taken.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from deployments.runpod import sdk
from deployments.runpod.job import INTERNAL_ERROR, Job, is_error, to_json
from deployments.runpod.outage_log import Backoff, OutageLog

logger = logging.getLogger(__name__)

_LOGGED_ANSWER_CHARS = 200


@dataclass(frozen=True)
class Patience:
    """How long the worker waits for the job API, in seconds.

    backoff: pauses after failures
    result_s: how long a result is posted again and again
    poll_s: how long a poll for jobs or for stop signals may stay open
    connect_s: how long a connection may take; after that the job API cannot be reached
    quick_answer_s: no jobs, answered faster than this, was not a long poll; wait this long before
        asking again
    no_signal_s: pause after an answer without stop signals
    too_many_requests_s: pause after HTTP 429
    """

    backoff: Backoff = field(default_factory=Backoff)
    result_s: float = 300.0
    poll_s: float = 90.0
    connect_s: float = 10.0
    quick_answer_s: float = 0.25
    no_signal_s: float = 1.0
    too_many_requests_s: float = 5.0


@dataclass(frozen=True)
class _Poll:
    """A call that the job API keeps open until it has jobs or stop signals.

    found: what the JSON of an answer holds
    empty_statuses: HTTP statuses that say that there is nothing
    empty_pause_s: the pause after an empty answer that took less than `quick_s` seconds
    """

    outage: OutageLog
    found: Callable[[Any], list[Any]]
    empty_statuses: tuple[int, ...]
    empty_pause_s: float
    quick_s: float


class Refused(Exception):
    """The job API refuses what was posted, and would refuse it again."""

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(status)
        self.status, self.answer = status, answer


class JobApi:
    """The job API as a worker uses it, in one session of the SDK's."""

    def __init__(
        self, session: ClientSession, patience: Patience | None = None
    ) -> None:
        self._session = session
        self._patience = patience or Patience()
        backoff = self._patience.backoff
        quick_s = self._patience.quick_answer_s
        # With FlashBoot the job API answers 400 where it has no job.
        self._take_poll = _Poll(
            OutageLog("job-take", backoff), _jobs_in, (204, 400), quick_s, quick_s
        )
        no_signal_s = self._patience.no_signal_s
        self._stop_poll = _Poll(
            OutageLog("job-stop", backoff), _stops_in, (204,), no_signal_s, math.inf
        )

    async def take(self, count: int, stopping: asyncio.Event) -> list[Job]:
        """Up to `count` jobs; none after a long poll or after a failure, which takes a pause.

        stopping: ends a pause at once
        """
        jobs, pause_s = await self._ask(self._take_poll, sdk.take_url(count))
        if pause_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause_s)
        # Without an id there is no URL to post an answer to.
        usable = [job for job in jobs if _has_id(job)]
        if len(usable) < len(jobs):
            logger.error("event=jobs_without_id count=%d", len(jobs) - len(usable))
        return usable

    async def stop_signals(self) -> AsyncIterator[str]:
        """Ids of jobs that are to be stopped, for ever; none where there is no URL to ask."""
        url = sdk.stop_url()
        if url is None:
            logger.warning("event=no_stop_signals")
            return
        while True:
            job_ids, pause_s = await self._ask(self._stop_poll, url)
            for job_id in job_ids:
                yield job_id
            await asyncio.sleep(pause_s)

    async def deliver(self, job: Job, result: Any) -> None:
        """Post a job's result until the job API takes it, as long as patience lasts.

        A result that is no JSON, or that is refused, is logged, and the job gets an error in its
        place. Where that cannot be posted either, this is logged, and nothing is raised.

        result: the output, or `{"error": text}`
        """
        job_id = job["id"]
        body = result if is_error(result) else {"output": result}
        try:
            data = await asyncio.to_thread(to_json, body)
        except ValueError as error:
            logger.error(
                "event=result_invalid job=%s error=%s", job_id, reason_of(error)
            )
            body = {"error": INTERNAL_ERROR}
            data = to_json(body)
        refused = await self._post_until_taken(job_id, data)
        if refused is None:
            return
        logger.error(
            "event=result_refused job=%s bytes=%d status=%d answer=%s",
            *(job_id, len(data), refused.status),
            json.dumps(refused.answer[:_LOGGED_ANSWER_CHARS]),
        )
        if not is_error(body):
            megabytes = f"{len(data) / 1e6:.1f} MB"
            text = (
                f"The job API refused the result of {megabytes} (HTTP {refused.status})"
            )
            data = to_json({"error": text})
            refused = await self._post_until_taken(job_id, data)
        if refused is not None:
            logger.error(
                "event=result_lost job=%s bytes=%d error=%s",
                *(job_id, len(data), reason_of(refused)),
            )

    async def post_progress(
        self, job_id: str, output: dict[str, Any], timeout_s: float
    ) -> None:
        """One try. Raises Refused, aiohttp.ClientError or TimeoutError."""
        data = to_json({"status": "IN_PROGRESS", "output": output})
        await self._post(sdk.result_url(job_id), job_id, data, timeout_s)

    async def post_chunk(
        self, job_id: str, chunk: Any, timeout_s: float, tries: int
    ) -> None:
        """A chunk of a job's stream. Raises Refused, and what the last try raises."""
        data = to_json({"output": chunk})
        url = sdk.stream_url(job_id)
        for failures in range(1, tries):
            with suppress(ClientError, TimeoutError):
                return await self._post(url, job_id, data, timeout_s)
            await asyncio.sleep(self._patience.backoff.pause_after(failures))
        await self._post(url, job_id, data, timeout_s)

    async def _ask(self, poll: _Poll, url: str) -> tuple[list[Any], float]:
        """The jobs or stop signals, and the seconds to wait before the next poll."""
        started = time.monotonic()
        try:
            found = poll.found(await self._get(url, poll.empty_statuses))
        except Exception as error:  # noqa: BLE001 - whatever it was, the worker asks again
            return [], self._pause_after(error, poll.outage)
        poll.outage.answered()
        quick = time.monotonic() - started < poll.quick_s
        return found, poll.empty_pause_s if quick and not found else 0.0

    async def _get(self, url: str, empty_statuses: tuple[int, ...]) -> Any:
        """The JSON of the answer; None where there is none."""
        patience = self._patience
        timeout = ClientTimeout(total=patience.poll_s, connect=patience.connect_s)
        async with self._session.get(url, timeout=timeout) as answer:
            if answer.status in empty_statuses:
                return None
            answer.raise_for_status()
            if answer.content_type != "application/json":
                return None
            return await answer.json()

    def _pause_after(self, error: Exception, outage: OutageLog) -> float:
        # A connection that takes too long is a ClientError as well, and an outage.
        if isinstance(error, TimeoutError) and not isinstance(error, ClientError):
            # The poll stayed open: there are no jobs or stop signals.
            return 0.0
        if getattr(error, "status", None) == 429:
            return self._patience.too_many_requests_s
        return outage.failed(reason_of(error))

    async def _post_until_taken(self, job_id: str, data: bytes) -> Refused | None:
        """Gives the refusal, if any. A result that is not taken in time is lost, and logged."""
        started = time.monotonic()
        failures = 0
        while True:
            try:
                await self._post(sdk.result_url(job_id), job_id, data)
                return None
            except Refused as refused:
                return refused
            except (ClientError, TimeoutError, ValueError) as failure:
                error = failure
                failures += 1
            pause = self._patience.backoff.pause_after(failures)
            late = time.monotonic() - started + pause > self._patience.result_s
            # An error of a certificate is a ValueError as well, and may pass.
            if late or not isinstance(error, ClientError | TimeoutError):
                logger.error(
                    "event=result_lost job=%s bytes=%d tries=%d error=%s",
                    *(job_id, len(data), failures, reason_of(error)),
                )
                return None
            if failures == 1:
                logger.warning(
                    "event=result_delayed job=%s error=%s", job_id, reason_of(error)
                )
            await asyncio.sleep(pause)

    async def _post(
        self, url: str, job_id: str, data: bytes, timeout_s: float = 120.0
    ) -> None:
        """Post once.

        Raises Refused, ClientError or TimeoutError where another try may help, and ValueError
        where the id fits no header.
        """
        headers = {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job_id,
        }
        timeout = ClientTimeout(total=timeout_s, connect=self._patience.connect_s)
        async with self._session.post(
            url, data=data, headers=headers, timeout=timeout
        ) as answer:
            if 400 <= answer.status < 500 and answer.status not in (408, 429):
                raise Refused(answer.status, await answer.text(errors="replace"))
            answer.raise_for_status()
            await answer.read()


def reason_of(error: BaseException) -> str:
    """The HTTP status or the kind of an error of aiohttp; its text holds the URL."""
    if isinstance(error, Refused):
        return f"HTTP_{error.status}"
    status = getattr(error, "status", None)
    return f"HTTP_{status}" if status else type(error).__name__


def _has_id(job: Any) -> bool:
    return isinstance(job, dict) and isinstance(job.get("id"), str)


def _jobs_in(answer: Any) -> list[Any]:
    # One job comes alone, several come as a list.
    jobs = [answer] if isinstance(answer, dict) else answer
    return jobs if isinstance(jobs, list) else []


def _stops_in(answer: Any) -> list[str]:
    """The ids of the jobs that are to be stopped."""
    job_ids = answer.get("jobsToStop") if isinstance(answer, dict) else None
    if not isinstance(job_ids, list):
        return []
    return [job_id for job_id in job_ids if isinstance(job_id, str)]
