"""RunPod's job API, used with patience.

While it cannot be reached, jobs are asked for with pauses. A result is posted until it is taken.
"""

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from deployments.runpod import sdk
from deployments.runpod.outage_log import Backoff, OutageLog

logger = logging.getLogger(__name__)

Job = dict[str, Any]

_ANSWER_SHOWN = 200


@dataclass(frozen=True)
class Patience:
    """How long the worker waits for the job API, in seconds.

    backoff: pauses after failures
    result_s: how long a result is posted again and again
    poll_s: how long a poll for jobs or for stop signals may stay open
    quick_answer_s: an empty answer faster than this was not a long poll; wait this long before
        asking again
    too_many_requests_s: pause after HTTP 429
    """

    backoff: Backoff = field(default_factory=Backoff)
    result_s: float = 300.0
    poll_s: float = 90.0
    quick_answer_s: float = 0.25
    too_many_requests_s: float = 5.0


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
        self._taking = OutageLog("job-take", backoff)
        self._stopping = OutageLog("job-stop", backoff)

    async def take(self, count: int) -> list[Job]:
        """Up to `count` jobs; none after a long poll or after a failure, which takes a pause."""
        jobs = await self._poll(sdk.get_job(self._session, count), self._taking)
        # Nobody could be answered for a job without an id.
        usable = [job for job in jobs if _is_job(job)]
        if len(usable) < len(jobs):
            logger.error("event=jobs_without_id count=%d", len(jobs) - len(usable))
        return usable

    async def stop_signals(self) -> list[str]:
        """Ids of jobs that are to be stopped; waits as `take` does."""
        return await self._poll(sdk.get_stop_signals(self._session), self._stopping)

    async def deliver(self, job: Job, result: dict[str, Any]) -> None:
        """Post a job's result until the job API takes it, as long as patience lasts. Never raises.

        A result that is refused is logged with its size and the answer, and the job gets an error
        in its place.

        result: the output, or `{"error": text}`
        """
        job_id = job["id"]
        body = result if "error" in result else {"output": result}
        data = await asyncio.to_thread(to_json, body)
        refused = await self._post_until_taken(job_id, data)
        if refused is None:
            return
        size = len(data.encode())
        logger.error(
            "event=result_refused job=%s bytes=%d status=%d answer=%s",
            *(job_id, size, refused.status),
            json.dumps(refused.answer[:_ANSWER_SHOWN]),
        )
        if "error" not in result:
            megabytes = f"{size / 1e6:.1f} MB"
            text = (
                f"The job API refused the result of {megabytes} (HTTP {refused.status})"
            )
            await self._post_until_taken(job_id, to_json({"error": text}))

    async def post_progress(
        self, job_id: str, output: dict[str, Any], timeout_s: float
    ) -> None:
        """One try. Raises Refused, aiohttp.ClientError or TimeoutError."""
        data = to_json({"status": "IN_PROGRESS", "output": output})
        await self._post(sdk.result_url(job_id), job_id, data, timeout_s)

    async def post_segments(
        self, job_id: str, segments: list[Any], timeout_s: float, tries: int
    ) -> None:
        """A chunk of a job's stream. Raises Refused, and what the last try raises."""
        data = to_json({"output": {"segments": segments}})
        url = sdk.stream_url(job_id)
        for failures in range(1, tries):
            with suppress(ClientError, TimeoutError):
                return await self._post(url, job_id, data, timeout_s)
            await asyncio.sleep(self._patience.backoff.pause_after(failures))
        await self._post(url, job_id, data, timeout_s)

    async def _poll(
        self, poll: Coroutine[Any, Any, list[Any] | None], outage: OutageLog
    ) -> list[Any]:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience.poll_s):
                answer = await poll or []
        except TimeoutError:
            # The poll stayed open: there is no job, and no outage.
            return []
        except sdk.TooManyRequests:
            await asyncio.sleep(self._patience.too_many_requests_s)
            return []
        except Exception as error:  # noqa: BLE001 - whatever it was, the worker asks again
            await asyncio.sleep(outage.failed(reason_of(error)))
            return []
        outage.answered()
        quick_answer_s = self._patience.quick_answer_s
        if not answer and time.monotonic() - started < quick_answer_s:
            await asyncio.sleep(quick_answer_s)
        return answer

    async def _post_until_taken(self, job_id: str, data: str) -> Refused | None:
        """Gives the refusal, if any. A result that is not taken in time is lost, and logged."""
        started = time.monotonic()
        failures = 0
        while True:
            try:
                await self._post(sdk.result_url(job_id), job_id, data)
                return None
            except Refused as refused:
                return refused
            except (ClientError, TimeoutError) as error:
                failures += 1
                reason = reason_of(error)
            pause = self._patience.backoff.pause_after(failures)
            if time.monotonic() - started + pause > self._patience.result_s:
                logger.error(
                    "event=result_lost job=%s bytes=%d tries=%d error=%s",
                    *(job_id, len(data.encode()), failures, reason),
                )
                return None
            if failures == 1:
                logger.warning("event=result_delayed job=%s error=%s", job_id, reason)
            await asyncio.sleep(pause)

    async def _post(
        self, url: str, job_id: str, data: str, timeout_s: float = 120.0
    ) -> None:
        """One try. Raises Refused; ClientError or TimeoutError where another try may help."""
        headers = {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job_id,
        }
        timeout = ClientTimeout(total=timeout_s)
        async with self._session.post(
            url, data=data, headers=headers, timeout=timeout
        ) as answer:
            if 400 <= answer.status < 500 and answer.status not in (408, 429):
                raise Refused(answer.status, await answer.text(errors="replace"))
            answer.raise_for_status()
            await answer.read()


def to_json(value: Any) -> str:
    """Raises ValueError for NaN, which is no JSON, though the SDK would send it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def reason_of(error: BaseException) -> str:
    """The HTTP status or the kind of an error of aiohttp; its text holds the URL."""
    if isinstance(error, Refused):
        return f"HTTP_{error.status}"
    status = getattr(error, "status", None)
    return f"HTTP_{status}" if status else type(error).__name__


def _is_job(job: Any) -> bool:
    return isinstance(job, dict) and isinstance(job.get("id"), str)
