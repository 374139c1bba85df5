"""The events of a request while a replica works on it, from its thread to its caller."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from deployments.contract.answer import (
    Progress,
    SegmentEvent,
    Stage,
    segments_of,
)
from deployments.replica.transcript import ReplicaEvent, Transcript


class EventQueue:
    """The events of one request: any thread adds them, and the event loop yields them.

    segments, progress: whether these events are wanted; stages are wanted with the progress
    words: whether the request asked for the words of its segments
    """

    def __init__(self, *, segments: bool, progress: bool, words: bool) -> None:
        self._segments = segments
        self._progress = progress
        self._words = words
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[ReplicaEvent | None] = asyncio.Queue()

    async def until_done(
        self, work: "asyncio.Future[Transcript]"
    ) -> AsyncGenerator[ReplicaEvent, None]:
        """The events until the work is done, and what it gives. Raises what the work raises."""
        work.add_done_callback(lambda _: self._events.put_nowait(None))
        while (event := await self._events.get()) is not None:
            yield event
        yield await work

    def queued(self, duration_s: float, windows_ahead: int) -> None:
        """No slot is free for the request's first window.

        windows_ahead: how many windows have waited longer
        """
        if self._progress:
            self._emit(
                Stage(stage="queued", duration=duration_s, windows_ahead=windows_ahead)
            )

    def callbacks(self, duration_s: float) -> dict[str, Any]:
        """Arguments of `Engine.transcribe`.

        duration_s: of the recording
        """
        on_start = partial(self._on_start, duration_s)
        return {
            "on_start": on_start if self._progress else None,
            "on_progress": self._on_progress if self._progress else None,
            "on_segments": self._on_segments if self._segments else None,
        }

    def _on_start(self, duration_s: float) -> None:
        self._emit(Stage(stage="transcribing", duration=duration_s))
        self._emit(Progress(done=0.0, total=duration_s))

    def _on_progress(self, done: float, total: float) -> None:
        # The engine reports 0 before the request has a slot; `_on_start` does so after that.
        if done:
            self._emit(Progress(done=done, total=total))

    def _on_segments(self, final: list[dict[str, Any]]) -> None:
        for segment in segments_of(final, self._words):
            self._emit(SegmentEvent(segment=segment))

    def _emit(self, event: ReplicaEvent) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)
