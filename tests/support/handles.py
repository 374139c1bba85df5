"""A Serve handle that answers as a test tells it. No Ray cluster."""

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from deployments.contract.answer import Progress, Segment, SegmentEvent, Stage
from deployments.replica.transcript import Reply, Transcript

# Longer than any test waits.
FOREVER = 1000.0


class Response:
    """What a handle's call gives: awaited once or iterated, and cancelled or not.

    outcome: the answer, or the events; an exception is raised in its place
    delay_s: before the answer, or before each event; a replica accepts a request without delay
    """

    def __init__(self, outcome: Any, delay_s: float = 0.0) -> None:
        self.outcome = outcome
        self.delay_s = delay_s
        self.cancelled = False
        self._events: Any = None

    def again(self) -> "Response":
        """This response from its beginning."""
        self._events = None
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await asyncio.sleep(self.delay_s)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def __anext__(self) -> Any:
        self._events = self._events or iter(self.outcome)
        event = next(self._events, None)
        if event is None:
            raise StopAsyncIteration
        if not isinstance(event, Reply):
            await asyncio.sleep(self.delay_s)
        if isinstance(event, Exception):
            raise event
        return event


class Handle:
    """Answers the calls of each method with its responses in turn, the last one again and again."""

    def __init__(self, **responses: list[Response]) -> None:
        self.responses = {"ping": [Response(None)], "ready": [Response(None)]}
        self.responses |= responses
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._next(name, given))

    def options(self, stream: bool) -> "Handle":
        assert stream
        return self

    def broadcast(self, name: str) -> "_Broadcast":
        return _Broadcast(self._next(name, ()))

    def _next(self, name: str, given: tuple[Any, ...]) -> Response:
        self.calls.append(name)
        self.arguments.append(given)
        left = self.responses[name]
        return (left.pop(0) if len(left) > 1 else left[0]).again()


@dataclass
class _Broadcast:
    response: Response

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> Any:
        assert return_exceptions
        async with asyncio.timeout(timeout_s):
            return await self.response


def events(*items: Any, delay_s: float = 0.0) -> Response:
    """The response to a streaming call that the replica accepts."""
    return Response([Reply.ACCEPTED, *items], delay_s)


def full(windows_waiting: int = 8) -> Response:
    """The response of a replica that has no room for the request."""
    told = Stage(stage="queued", windows_ahead=windows_waiting)
    return Response([Reply.FULL, told])


def transcript(text: str = "hello", **fields: Any) -> Transcript:
    given: dict[str, Any] = {
        "segments": [],
        "words": None,
        "text": text,
        "language": "en",
        "language_probability": None,
        "device": "cpu",
        "queue_s": 0.5,
        "transcribe_s": 1.0,
        "batch_windows": 2.5,
        "warnings": [],
    }
    return Transcript(**given | fields)


SEGMENT = SegmentEvent(
    segment=Segment(
        id=0,
        seek=0,
        start=0.0,
        end=1.0,
        text=" hello",
        tokens=[50364, 7751, 50414],
        temperature=0.0,
        avg_logprob=-0.25,
        compression_ratio=0.5,
        no_speech_prob=0.125,
    )
)
PROGRESS = Progress(done=0.0, total=1.0)
