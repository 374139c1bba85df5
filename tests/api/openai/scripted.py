"""A service on a real port whose model answers as told, for clients of OpenAI's API."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayTaskError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import api
from deployments.contract.answer import (
    Progress,
    Segment,
    SegmentEvent,
    SegmentWord,
    words_of,
)
from deployments.contract.errors import WhisperServeError
from deployments.contract.options import TranscriptionOptions
from deployments.replica.transcript import SlotUse
from tests.support.handles import Handle, Response, events, transcript
from tests.support.routers import AUDIO, router

# Eleven seconds of speech, of which the scripted model says what follows.
RECORDING = AUDIO / "jfk-phone.wav"


def _segment(number: int, start: float, text: str) -> Segment:
    """A segment of Whisper's with the time of each word; one is said every half second."""
    words = [f" {word}" for word in text.split()]
    return Segment(
        id=number,
        seek=0,
        start=start,
        end=start + len(words) / 2,
        text=text,
        unstripped_text=text,
        tokens=[50364, 400, 50414],
        temperature=0.0,
        avg_logprob=-0.25,
        compression_ratio=0.5,
        no_speech_prob=0.125,
        words=[
            SegmentWord(
                word=word,
                start=start + place / 2,
                end=start + place / 2 + 0.5,
                probability=0.75,
            )
            for place, word in enumerate(words)
        ],
    )


SEGMENTS = [
    _segment(0, 0.0, " And so, my fellow Americans,"),
    _segment(1, 3.5, " ask not what your country can do for you."),
]
TEXT = "And so, my fellow Americans, ask not what your country can do for you."
SRT = """\
1
00:00:00,000 --> 00:00:02,500
And so, my fellow Americans,

2
00:00:03,500 --> 00:00:08,000
ask not what your country can do for you.

"""


def speech(words: bool = False, delay_s: float = 0.0) -> Response:
    """What a replica gives for the recording.

    words: whether the request asks for them
    """
    segments = [s if words else s.model_copy(update={"words": None}) for s in SEGMENTS]
    return events(
        Progress(done=0.0, total=11.0),
        *(SegmentEvent(segment=segment) for segment in segments),
        Progress(done=11.0, total=11.0),
        transcript(
            f" {TEXT}", segments=segments, words=words_of(segments) if words else None
        ),
        delay_s=delay_s,
    )


def failing(error: WhisperServeError, after: int = 0) -> Response:
    """A replica that fails, once it has given some of the segments."""
    said = [SegmentEvent(segment=segment) for segment in SEGMENTS[:after]]
    return events(*said, RayTaskError("stream", "", error).as_instanceof_cause())


@dataclass(frozen=True)
class Request:
    """One request as HTTP brought it; of its body the first bytes, and the answer's status."""

    path: str
    headers: Headers
    body_start: bytes
    status: int


@dataclass
class Service:
    """The whole application over a model that answers as told, and what both were asked."""

    url: str
    handle: Handle
    app: ASGIApp
    requests: list[Request] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        """As a client of OpenAI's is told."""
        return f"{self.url}/v1"

    @property
    def options(self) -> list[TranscriptionOptions]:
        """What reached the model, by request."""
        calls = zip(self.handle.calls, self.handle.arguments, strict=True)
        return [given[1] for name, given in calls if name == "stream"]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as the application does, and keep it."""
        body = b""

        async def received() -> Message:
            nonlocal body
            message = await receive()
            if len(body) < 1000:
                body = (body + message.get("body", b""))[:1000]
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                request = Request(
                    scope["path"], Headers(scope=scope), body, message["status"]
                )
                self.requests.append(request)
            await send(message)

        await self.app(scope, received, sent)


class Stage:
    """An ASGI application that passes requests to the test's service, so that all share a port."""

    url = ""
    _service: Service | None = None

    def service(self, *responses: Response, **args: Any) -> Service:
        """A new service; its model answers with `responses`, or with `speech` to each request.

        args: of the application
        """
        handle = Handle(
            stream=list(responses) or [speech()],
            slots=[Response([SlotUse(slots=8, slots_in_use=0, windows_waiting=0)])],
        )
        app = api.build(router(handle, **args))
        self._service = Service(self.url, handle, app)
        return self._service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._service
        await self._service.answer(scope, receive, send)


# Makes a service, as `Stage.service` does.
StartService = Callable[..., Service]
