"""From a RunPod job to the Serve handle and back: the contract's third door.

The handler returns the contract's result, or `{"error": "<short text>"}`; it never raises, because the SDK
would post the traceback.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import ClientError, ClientSession
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http
from runpod.serverless.modules.worker_state import IS_LOCAL_TEST

from deployments.config import AppArgs
from deployments.contract.errors import InvalidRequestError, WhisperServeError
from deployments.contract.request import unwrapped
from deployments.logs import place_of
from deployments.runpod.job_api import Refused, pause_after, post, reason_of
from deployments.runpod.settings import Settings

logger = logging.getLogger(__name__)

Job = dict[str, Any]

PROGRESS_INTERVAL_S = 2.0
# Of one post to a job's stream; the job API takes 1 MB.
MAX_CHUNK_BYTES = 900_000
_PROGRESS_TIMEOUT_S = 10.0
_STREAM_TIMEOUT_S = 10.0
_STREAM_TRIES = 3

_SERVICE_DIED = "The worker's service has died during this job: send the job again"
_WITHOUT_TOKENS = "The segments' tokens are left out: with them the result is larger than the job API takes"


class JobHandler:
    """Does jobs, any number at the same time.

    router: the application's handle
    """

    def __init__(
        self, router: DeploymentHandle[Any], settings: Settings, args: AppArgs
    ) -> None:
        self._router = router.options(stream=True)
        self._settings = settings
        self._args = args
        self._in_work: set[asyncio.Task[dict[str, Any]]] = set()
        self._service_died = False

    async def handle(self, job: Job) -> dict[str, Any]:
        """One job's result as it is to be posted. Cancelling it stops its work."""
        work = asyncio.ensure_future(self._answer(job))
        self._in_work.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if self._service_died:
                return {"error": _SERVICE_DIED}
            work.cancel()
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # Not this job was cancelled, but something that it waited for.
                return {"error": str(_lost())}
            raise
        finally:
            self._in_work.discard(work)

    def fail_all(self) -> None:
        """The service has died: every job in work, or still to come, ends with an error that says so."""
        self._service_died = True
        for work in self._in_work:
            work.cancel()

    async def _answer(self, job: Job) -> dict[str, Any]:
        try:
            if self._service_died:
                return {"error": _SERVICE_DIED}
            request, streamed = self._request_of(job)
            async with _reports(job, streamed) as reports:
                result = await self._transcribe(job["id"], request, reports)
            return await asyncio.to_thread(
                fitting, result, self._settings.max_result_bytes
            )
        except WhisperServeError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - its text is not for the caller
            logger.error(
                "event=job_failed job=%s error=%s at=%s",
                *(job["id"], type(error).__name__, place_of(error)),
            )
            return {"error": "Internal error; the worker's log names it"}

    def _request_of(self, job: Job) -> tuple[dict[str, Any], bool]:
        """The contract's request, and whether its segments are to be streamed."""
        job_input = unwrapped(job.get("input"))
        if not isinstance(job_input, dict):
            raise InvalidRequestError("The job's input must be a JSON object")
        request = self._settings.completed(job_input, self._args)
        streamed = request.pop("stream", None)
        if streamed is None:
            return request, False
        if not isinstance(streamed, bool):
            raise InvalidRequestError("Invalid stream: must be true or false")
        return request, streamed

    async def _transcribe(
        self, job_id: str, request: dict[str, Any], reports: "_Reports"
    ) -> dict[str, Any]:
        """A request that the router's death takes along is tried once more, unless segments have gone out."""
        try:
            return await self._transcribe_once(job_id, request, reports)
        except RayActorError:
            if reports.segments_went_out:
                raise _lost() from None
            logger.warning("event=router_died job=%s retry=true", job_id)
        try:
            return await self._transcribe_once(job_id, request, reports)
        except RayActorError:
            raise _lost() from None

    async def _transcribe_once(
        self, job_id: str, request: dict[str, Any], reports: "_Reports"
    ) -> dict[str, Any]:
        events: Any = self._router.stream.remote(request, job_id, reports.streamed)
        result: dict[str, Any] | None = None
        try:
            async for event in events:
                if event["event"] == "result":
                    # To the end: what is left early counts as cancelled.
                    result = event["result"]
                else:
                    reports.add(event)
        except RayTaskError as error:
            # It poses as the service's own error, but its text is a traceback.
            if isinstance(error.cause, WhisperServeError):
                raise error.cause from None
            raise
        finally:
            # Also when this job is cancelled: nothing else would end the work.
            events.cancel()
        if result is None:
            raise WhisperServeError("The service gave no result")
        return result


def fitting(result: dict[str, Any], limit: int) -> dict[str, Any]:
    """The result, without its tokens if it is larger than `limit` bytes as it will be sent.

    Raises InvalidRequestError if that is not enough, and ValueError if it is no JSON.
    """
    if _size(result) <= limit:
        return result
    segments = [
        {key: value for key, value in segment.items() if key != "tokens"}
        for segment in result["segments"]
    ]
    shortened = result | {"segments": segments, "note": _WITHOUT_TOKENS}
    size = _size(shortened)
    if size <= limit:
        return shortened
    words = " without word_timestamps, or" if "word_timestamps" in result else ""
    raise InvalidRequestError(
        f"The result takes {size / 1e6:.1f} MB, more than the {limit / 1e6:g} MB that can be sent:"
        f" transcribe the recording{words} in parts (clip_timestamps)"
    )


def _size(result: dict[str, Any]) -> int:
    return len(_json({"output": result}).encode())


def _json(value: Any) -> str:
    """As the SDK writes it, but for NaN, which is no JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _lost() -> WhisperServeError:
    return WhisperServeError(
        "The service lost this job while it restarted: send it again"
    )


@asynccontextmanager
async def _reports(job: Job, streamed: bool) -> AsyncIterator["_Reports"]:
    """The job's reports; whatever is under way has landed, or been given up, at the end."""
    reports = _Reports(job["id"], streamed)
    posting = asyncio.ensure_future(reports.post_all())
    try:
        yield reports
    except asyncio.CancelledError:
        posting.cancel()
        raise
    finally:
        reports.close()
        try:
            await posting
        except asyncio.CancelledError:
            # Either the posting was cancelled, above, or the job is now.
            if (task := asyncio.current_task()) and task.cancelling():
                raise
        except Exception as error:  # noqa: BLE001 - no reason to lose the result
            logger.error(
                "event=report_failed job=%s error=%s at=%s",
                *(job["id"], type(error).__name__, place_of(error)),
            )


class _Reports:
    """What is told of a job while it runs: progress now and then, and segments if they are to be streamed.

    One post after another, so that they land in order, and none after the result.
    """

    def __init__(self, job_id: str, streamed: bool) -> None:
        self._job_id = job_id
        self.streamed = streamed
        self.segments_went_out = False
        self._segments: list[dict[str, Any]] = []
        self._done_s = 0.0
        self._total_s = 0.0
        self._told_s = 0.0
        self._told_at = time.monotonic()
        self._stream_closed = False
        self._closed = False
        self._news = asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        """Note an event of the service, to be posted soon."""
        if event["event"] == "segment":
            self.segments_went_out = True
            if not self._stream_closed:
                self._segments.append(event["segment"])
        else:
            self._done_s, self._total_s = event["done"], event["total"]
        self._news.set()

    def close(self) -> None:
        """What has been noted of the segments still goes out; progress no longer does."""
        self._closed = True
        self._news.set()

    async def post_all(self) -> None:
        """Until closed."""
        if IS_LOCAL_TEST:
            return
        async with AsyncClientSession() as session:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._segments:
                    await self._post_segments(session)
                if self._closed:
                    return
                if self._progress_is_due():
                    await self._post_progress(session)

    def _progress_is_due(self) -> bool:
        # After a retry it begins anew: it is told only when it is further than before.
        waited = time.monotonic() - self._told_at
        return waited >= PROGRESS_INTERVAL_S and self._done_s > self._told_s

    async def _post_progress(self, session: ClientSession) -> None:
        self._told_at, self._told_s = time.monotonic(), self._done_s
        output = {
            "progress_percent": round(100 * self._done_s / self._total_s, 1),
            "audio_seconds_done": round(self._done_s, 2),
            "audio_seconds": round(self._total_s, 2),
        }
        data = _json({"status": "IN_PROGRESS", "output": output})
        try:
            await post(
                session, self._url(rp_http.JOB_DONE_URL), data, _PROGRESS_TIMEOUT_S
            )
        except (Refused, ClientError, TimeoutError) as error:
            # The next one tells more.
            logger.warning(
                "event=progress_not_taken job=%s error=%s",
                *(self._job_id, reason_of(error)),
            )

    async def _post_segments(self, session: ClientSession) -> None:
        chunk: list[dict[str, Any]] = []
        size = 0
        while self._segments:
            size += len(_json(self._segments[0]).encode()) + 2
            if chunk and size > MAX_CHUNK_BYTES:
                break
            chunk.append(self._segments.pop(0))
        data = _json({"output": {"segments": chunk}})
        try:
            return await self._post_stubbornly(session, data)
        except (Refused, ClientError, TimeoutError) as error:
            reason = reason_of(error)
        # All of them are in the result as well, which is not to wait for a stream that nobody takes.
        logger.error(
            "event=stream_not_taken job=%s segments=%d error=%s",
            *(self._job_id, len(chunk) + len(self._segments), reason),
        )
        self._stream_closed = True
        self._segments.clear()

    async def _post_stubbornly(self, session: ClientSession, data: str) -> None:
        """Raises Refused, and what the last of several tries raises."""
        url = self._url(rp_http.JOB_STREAM_URL)
        for failures in range(1, _STREAM_TRIES):
            with suppress(ClientError, TimeoutError):
                return await post(session, url, data, _STREAM_TIMEOUT_S)
            await asyncio.sleep(pause_after(failures))
        await post(session, url, data, _STREAM_TIMEOUT_S)

    def _url(self, template: str) -> str:
        return f"{template.replace('$ID', self._job_id)}&isStream=false"
