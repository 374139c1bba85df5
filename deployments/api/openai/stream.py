"""A transcription as OpenAI streams it: texts as they come, then the whole."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from deployments.api.events import message
from deployments.api.openai.answer import as_json, details, plain_text, warnings_of
from deployments.api.openai.answer_options import AnswerOptions
from deployments.api.openai.errors import body_of
from deployments.contract.answer import Answer, Event, Result, SegmentEvent
from deployments.contract.errors import WhisperServeError

_DONE = message("[DONE]")


async def messages(
    events: AsyncGenerator[Event, None], options: AnswerOptions
) -> AsyncGenerator[str, None]:
    """`Messages` of all events, and of the error that ends them.

    events: of `Router.events`, with segments
    """
    stream = Messages(options)
    try:
        async with aclosing(events):
            async for event in events:
                for text in await stream.of(event):
                    yield text
    except WhisperServeError as error:
        yield stream.of_error(error)


class Messages:
    """One stream's messages. The texts of all deltas, joined, are the text at the end."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._text = _Text()

    async def of(self, event: Event) -> list[str]:
        """The messages that an event of `Router.events` becomes, if any."""
        text = self._text
        if isinstance(event, SegmentEvent):
            segment = event.segment
            delta = text.add(segment.unstripped_text or segment.text)
            return [_delta(delta)] if delta else []
        if not isinstance(event, Result):
            return []
        rest = text.rest_of(event.result)
        # Some clients read deltas alone, so that an empty text has one as well.
        last = [_delta(rest)] if rest or not text.sent else []
        done = await asyncio.to_thread(_done, event.result, self._options, text.sent)
        return [*last, done, _DONE]

    def of_error(self, error: WhisperServeError) -> str:
        """The message that ends a stream that has failed."""
        return message(as_json(body_of(error, self._options.names)))


class _Text:
    """The text so far: without blanks at its beginning, and with blanks at its end held back."""

    def __init__(self) -> None:
        self.sent = ""
        self._blanks = ""

    def add(self, text: str) -> str:
        """What of the text can go out now."""
        text = self._blanks + text
        if not self.sent:
            text = text.lstrip()
        delta = text.rstrip()
        self._blanks = text[len(delta) :]
        self.sent += delta
        return delta

    def rest_of(self, answer: Answer) -> str:
        """What of the result's text has not gone out; all of it where no segments came."""
        if not answer.transcription.startswith(self.sent):
            return ""
        rest = answer.transcription[len(self.sent) :]
        self.sent = answer.transcription
        return rest


def _delta(text: str) -> str:
    return message(as_json({"type": "transcript.text.delta", "delta": text}))


def _done(answer: Answer, options: AnswerOptions, text: str) -> str:
    """The event that ends a stream. OpenAI's has `text` alone; SDKs take further keys."""
    event: dict[str, Any] = {"type": "transcript.text.done", "text": text}
    event |= details(answer, options) | {"text": text}
    if options.format in ("srt", "vtt"):
        event[options.format] = plain_text(answer, options)
    if warnings := warnings_of(answer, options):
        event["warnings"] = warnings
    return message(as_json(event))
