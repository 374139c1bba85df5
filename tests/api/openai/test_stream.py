"""Events as OpenAI's stream writes them."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deployments.api.openai import stream
from deployments.api.openai.answer_options import AnswerOptions
from deployments.contract.answer import Event, Progress, Result, SegmentEvent, Stage
from deployments.contract.errors import InvalidAudioError
from tests.api.openai.transcripts import TEXT, answer, segment_events, segments


async def given(*items: Any) -> AsyncGenerator[Event, None]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


async def data_of(*items: Any, options: AnswerOptions | None = None) -> list[str]:
    """What stands behind `data: ` in each message."""
    options = options or AnswerOptions("transcribe")
    messages = [text async for text in stream.messages(given(*items), options)]
    for text in messages:
        assert text.startswith("data: ") and text.endswith("\n\n")
        assert text.count("\n") == 2
    return [text.removeprefix("data: ").strip() for text in messages]


async def bodies_of(*items: Any, options: AnswerOptions | None = None) -> list[Any]:
    *bodies, end = await data_of(*items, options=options)
    assert end == "[DONE]"
    return [json.loads(body) for body in bodies]


def spoken(*texts: str) -> list[SegmentEvent]:
    """A segment of each text."""
    lines = [[(text, 0.0, 1.0)] for text in texts]
    return [SegmentEvent(segment=segment) for segment in segments(lines=lines)]


async def test_a_stream_is_deltas_then_the_whole_then_its_end() -> None:
    first, second, done = await bodies_of(
        None,
        Stage(stage="downloading"),
        Progress(done=0, total=1),
        *segment_events(),
        Result(result=answer()),
    )
    assert first == {
        "type": "transcript.text.delta",
        "delta": "And so, my fellow Americans.",
    }
    assert second == {"type": "transcript.text.delta", "delta": " Ask not."}
    assert done["type"] == "transcript.text.done"
    assert done["text"] == TEXT
    # SDKs know no usage by duration there.
    assert "usage" not in done


@pytest.mark.parametrize(
    ("texts", "deltas"),
    [
        ((" a", " b"), ["a", " b"]),
        (("世", "界"), ["世", "界"]),
        ((" a ", " b "), ["a", "  b"]),
        (("", " ", " a"), ["a"]),
        ((" a", "", "  ", " b"), ["a", "    b"[1:]]),
        ((" a\n", "b"), ["a", "\nb"]),
        ((), ["TEXT"]),
    ],
)
async def test_deltas_joined_are_the_text(
    texts: tuple[str, ...], deltas: list[str]
) -> None:
    whole = "".join(texts).strip() or "TEXT"
    result = Result(result=answer(transcription=whole))
    *found, done = await bodies_of(*spoken(*texts), result)
    assert [event["delta"] for event in found] == deltas
    assert "".join(deltas) == done["text"] == whole


async def test_deltas_that_went_out_are_not_contradicted() -> None:
    result = Result(result=answer(transcription="A"))
    *found, done = await bodies_of(*spoken(" a", " b"), result)
    assert "".join(event["delta"] for event in found) == done["text"] == "a b"


async def test_the_end_holds_what_the_format_would_hold() -> None:
    result = Result(result=answer(warnings=["cut"]))
    options = AnswerOptions(
        "transcribe",
        "verbose_json",
        granularities=frozenset({"word"}),
        warnings=("odd",),
    )
    done = (await bodies_of(result, options=options))[-1]
    assert done["words"][0] == {"word": "And", "start": 0.0, "end": 0.5}
    assert "segments" not in done
    assert done["warnings"] == ["odd", "cut"]
    done = (await bodies_of(result, options=AnswerOptions("transcribe", "vtt")))[-1]
    assert done["vtt"].startswith("WEBVTT\n\n")
    assert len(done["segments"]) == 2


async def test_a_failure_is_told_in_the_stream() -> None:
    options = AnswerOptions("transcribe", names={"audio": "url"})
    *_, last = await data_of(
        *segment_events(), InvalidAudioError("it is cut"), options=options
    )
    assert json.loads(last) == {
        "error": {
            "message": "Audio decoding failed: it is cut",
            "type": "invalid_request_error",
            "param": "url",
            "code": "invalid_audio",
        }
    }
