"""Posts about a running job: its progress every few seconds, and its stream if it has one."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from aiohttp import ClientError

from deployments.contract.answer import (
    Event,
    Progress,
    Result,
    Stage,
)
from deployments.logs import error_location
from deployments.runpod.job import to_json
from deployments.runpod.job_api import JobApi, Refused, reason_of

logger = logging.getLogger(__name__)

# The most bytes of one post to a job's stream; the job API takes 1 MB.
MAX_CHUNK_BYTES = 900_000
# Characters, of up to four bytes each.
_LONGEST_TEXT = MAX_CHUNK_BYTES // 4
_PROGRESS_INTERVAL_S = 2.0
_TIMEOUT_S = 10.0
_STREAM_TRIES = 3

_Item = TypeVar("_Item", str, dict[str, Any])


class Reports:
    """A job's reports, posted one after another, so that they land in order and before the result.

    api: None where there is no job API to post to
    streamed: whether the events are posted to the job's stream
    interval_s: the least time before the first report of progress, and between two of them
    """

    def __init__(
        self,
        api: JobApi | None,
        job_id: str,
        streamed: bool = False,
        interval_s: float = _PROGRESS_INTERVAL_S,
    ) -> None:
        self.streamed = streamed
        self._api = api
        self._job_id = job_id
        self._interval_s = interval_s
        self._events: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._stage: Stage | None = None
        self._progress: Progress | None = None
        self._reported: dict[str, Any] = {}
        self._reported_at = time.monotonic()
        self._stream_rejected = False
        self._closed = False
        self._changed = asyncio.Event()

    async def on_event(self, event: Event) -> None:
        """`add` as an argument of `answer_of`."""
        self.add(event)

    def add(self, event: Event) -> None:
        """Post an event soon. A result is ignored, because the job's own result repeats it."""
        if isinstance(event, Result):
            return
        if isinstance(event, Stage):
            self._stage = event
        elif isinstance(event, Progress) and event.done > self._done_s:
            # Progress restarts after a retry, and is not reported again.
            self._progress = event
        if self.streamed and not self._stream_rejected:
            self._events.append(event.model_dump())
        self._changed.set()

    def add_text(self, text: str) -> None:
        """Post a piece of a stream that is text, soon. A reader joins the pieces."""
        if not self._stream_rejected:
            self._texts += [
                text[start : start + _LONGEST_TEXT]
                for start in range(0, len(text), _LONGEST_TEXT)
            ]
        self._changed.set()

    @asynccontextmanager
    async def posted(self) -> AsyncIterator[None]:
        """Post what is added inside this context. At its end every post has landed or failed.

        Pieces of the stream that were added by then are still posted. Progress is not, because the
        result follows.
        """
        posting = asyncio.ensure_future(self._post_all())
        try:
            yield
        except asyncio.CancelledError:
            posting.cancel()
            raise
        finally:
            self._closed = True
            self._changed.set()
            await self._end_of(posting)

    async def _end_of(self, posting: asyncio.Future[None]) -> None:
        try:
            await posting
        except asyncio.CancelledError:
            # Either the posting was cancelled, by `posted`, or the job is being cancelled now.
            if (task := asyncio.current_task()) and task.cancelling():
                raise
        except Exception as error:  # noqa: BLE001 - no reason to lose the result
            logger.error(
                "event=report_failed job=%s error=%s at=%s",
                *(self._job_id, type(error).__name__, error_location(error)),
            )

    async def _post_all(self) -> None:
        """Returns once the reports are closed."""
        if self._api is None:
            return
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._report_due_s()):
                    await self._changed.wait()
            self._changed.clear()
            while self._events or self._texts:
                await self._post_chunk(self._api)
            if self._closed:
                return
            if self._report_due_s() == 0:
                await self._post_report(self._api, self._report())

    def _report_due_s(self) -> float | None:
        """Seconds until the next report of progress is due; None if there is nothing new."""
        if self._report() == self._reported:
            return None
        return max(0.0, self._reported_at + self._interval_s - time.monotonic())

    @property
    def _done_s(self) -> float:
        return self._progress.done if self._progress else 0.0

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = {}
        if stage := self._stage:
            report["stage"] = stage.stage
            if stage.windows_ahead is not None:
                report["windows_ahead"] = stage.windows_ahead
            if stage.duration is not None:
                report["audio_seconds"] = round(stage.duration, 2)
        if progress := self._progress:
            report["progress_percent"] = round(100 * progress.done / progress.total, 1)
            report["audio_seconds_done"] = round(progress.done, 2)
            report["audio_seconds"] = round(progress.total, 2)
        return report

    async def _post_report(self, api: JobApi, output: dict[str, Any]) -> None:
        self._reported_at, self._reported = time.monotonic(), output
        try:
            await api.post_progress(self._job_id, output, _TIMEOUT_S)
        except (Refused, ClientError, TimeoutError) as error:
            # The next report says more than this one, so do not post it again.
            logger.warning(
                "event=progress_rejected job=%s error=%s",
                *(self._job_id, reason_of(error)),
            )

    async def _post_chunk(self, api: JobApi) -> None:
        pieces = len(self._events) + len(self._texts)
        chunk = self._next_chunk()
        try:
            await api.post_chunk(self._job_id, chunk, _TIMEOUT_S, _STREAM_TRIES)
        except (Refused, ClientError, TimeoutError) as error:
            # The result holds all of the stream, and need not wait for posts that fail.
            logger.error(
                "event=stream_rejected job=%s pieces=%d error=%s",
                *(self._job_id, pieces, reason_of(error)),
            )
            self._stream_rejected = True
            self._events.clear()
            self._texts.clear()

    def _next_chunk(self) -> Any:
        if self._texts:
            return "".join(_taken(self._texts))
        return {"events": _taken(self._events)}


def _taken(items: list[_Item]) -> list[_Item]:
    """The first items, as many as fit into a chunk; at least one. They leave the list."""
    taken: list[_Item] = []
    size = 0
    while items:
        size += len(to_json(items[0])) + len(", ")
        if taken and size > MAX_CHUNK_BYTES:
            break
        taken.append(items.pop(0))
    return taken
