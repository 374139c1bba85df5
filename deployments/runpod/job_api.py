"""The way to RunPod's job API: one post, a result that is posted until it is taken, and what to do and to tell while
the API cannot be reached.
"""

import asyncio
import json
import logging
import time
from contextlib import suppress

from aiohttp import ClientError, ClientSession, ClientTimeout

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_REMINDER_S = 60.0
_RESULT_PATIENCE_S = 300.0
_POST_TIMEOUT_S = 120.0
_ANSWER_SHOWN = 200


class Refused(Exception):
    """The job API refuses what was posted, and would refuse it again."""

    def __init__(self, status: int, answer: str) -> None:
        super().__init__(status)
        self.status, self.answer = status, answer


async def deliver_result(session: ClientSession, url: str, data: str) -> None:
    """Post a job's result until the job API takes it; for five minutes.

    url: with the job's id at the end of its path
    data: JSON

    A result that is refused is logged with its size and the answer, and the job gets an error in its place.
    Raises aiohttp.ClientError where nothing could be delivered.
    """
    job = job_id(url)
    try:
        return await _post_until_taken(session, url, data)
    except Refused as refused:
        size, status = len(data.encode()), refused.status
        answer = json.dumps(refused.answer[:_ANSWER_SHOWN])
        logger.error(
            "event=result_refused job=%s bytes=%d status=%d answer=%s",
            *(job, size, status, answer),
        )
    if "output" in json.loads(data):
        text = f"The job API refused the result of {size / 1e6:.1f} MB (HTTP {status})"
        with suppress(Refused):
            return await _post_until_taken(session, url, json.dumps({"error": text}))
    raise ClientError(f"refused with HTTP {status}")


async def post(
    session: ClientSession, url: str, data: str, timeout_s: float = _POST_TIMEOUT_S
) -> None:
    """One try. Raises Refused, and aiohttp.ClientError or TimeoutError where another try may succeed."""
    headers = {
        "charset": "utf-8",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Request-ID": job_id(url),
    }
    timeout = ClientTimeout(total=timeout_s)
    async with session.post(url, data=data, headers=headers, timeout=timeout) as answer:
        if 400 <= answer.status < 500 and answer.status not in (408, 429):
            raise Refused(answer.status, await answer.text(errors="replace"))
        answer.raise_for_status()
        await answer.read()


def job_id(url: str) -> str:
    """The job whose URL this is."""
    return url.partition("?")[0].rpartition("/")[2]


async def _post_until_taken(session: ClientSession, url: str, data: str) -> None:
    """Raises Refused, and aiohttp.ClientError when patience is at its end."""
    started = time.monotonic()
    failures = 0
    while True:
        try:
            return await post(session, url, data)
        except (ClientError, TimeoutError) as error:
            failures += 1
            reason = reason_of(error)
        pause = pause_after(failures)
        if time.monotonic() - started + pause > _RESULT_PATIENCE_S:
            logger.error(
                "event=result_lost job=%s bytes=%d tries=%d error=%s",
                *(job_id(url), len(data.encode()), failures, reason),
            )
            raise ClientError("the job API could not be reached")
        if failures == 1:
            logger.warning("event=result_delayed job=%s error=%s", job_id(url), reason)
        await asyncio.sleep(pause)


class Line:
    """One call of the job API. The log tells the first failure in a row, reminds once a minute, and tells the end."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._failures = 0
        self._told_at = 0.0

    def failed(self, reason: str) -> float:
        """Note a failure; gives the seconds to wait before the next try."""
        self._failures += 1
        if self._failures == 1 or time.monotonic() - self._told_at > _REMINDER_S:
            self._told_at = time.monotonic()
            logger.warning(
                "event=job_api_unreachable call=%s failures=%d error=%s",
                self._call,
                self._failures,
                reason,
            )
        return pause_after(self._failures)

    def answered(self) -> None:
        """Note that it answers."""
        if self._failures:
            logger.warning(
                "event=job_api_back call=%s failures=%d", self._call, self._failures
            )
        self._failures = 0


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (min(failures, 10) - 1))


def reason_of(error: BaseException) -> str:
    """The HTTP status or the kind of an error of aiohttp; its text holds the URL."""
    status = getattr(error, "status", None)
    return f"HTTP_{status}" if status else type(error).__name__
