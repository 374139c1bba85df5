"""What an answer holds, as plain JSON."""

import json
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.contract.answer import (
    Answer,
    Segment,
    Timings,
    Word,
    segments_of,
    words_of,
)
from tests.support.contract import (
    FINITE,
    INF,
    NAN,
    PLAIN_TEXT,
)


def test_the_fields_of_a_response_are_those_of_the_documentation() -> None:
    fields = Segment.model_fields.items()
    assert [name for name, field in fields if not field.exclude] == [
        "id",
        "seek",
        "start",
        "end",
        "text",
        "tokens",
        "temperature",
        "avg_logprob",
        "compression_ratio",
        "no_speech_prob",
        "words",
    ]
    assert list(Word.model_fields) == ["word", "start", "end", "probability"]
    assert list(Timings.model_fields) == [
        "download",
        "decode",
        "model_start",
        "queue",
        "transcribe",
    ]
    assert list(Answer.model_fields) == [
        "segments",
        "word_timestamps",
        "chunks",
        "detected_language",
        "language_probability",
        "transcription",
        "device",
        "model",
        "duration",
        "audio_start",
        "timings",
        "batch_windows",
        "warnings",
        "request_id",
    ]


ODD_NUMBERS = FINITE | st.sampled_from([NAN, INF, -INF]) | st.integers(-5, 5)


ANY_WIDTH = st.sampled_from([float, np.float64, np.float32])


WHOLE_OF_ANY_WIDTH = st.sampled_from([int, np.int64, np.int32])


@st.composite
def odd_number(draw: st.DrawFn) -> Any:
    with np.errstate(over="ignore"):
        return draw(ANY_WIDTH)(draw(ODD_NUMBERS))


@st.composite
def time(draw: st.DrawFn) -> Any:
    return draw(ANY_WIDTH)(draw(st.floats(0, 1e5)))


@st.composite
def whole(draw: st.DrawFn) -> Any:
    return draw(WHOLE_OF_ANY_WIDTH)(draw(st.integers(0, 51864)))


WORDS = st.fixed_dictionaries(
    {"word": PLAIN_TEXT, "start": time(), "end": time(), "probability": odd_number()}
)


SEGMENTS = st.fixed_dictionaries(
    {
        "id": whole(),
        "seek": whole(),
        "start": time(),
        "end": time(),
        "text": PLAIN_TEXT,
        "tokens": st.lists(whole(), max_size=4),
        "temperature": time(),
        "avg_logprob": odd_number(),
        "compression_ratio": odd_number(),
        "no_speech_prob": odd_number(),
    },
    optional={"words": st.lists(WORDS, max_size=3)},
)


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


@settings(max_examples=100, deadline=None)
@given(st.lists(SEGMENTS, max_size=3))
def test_any_result_of_whisper_becomes_plain_json(
    segments: list[dict[str, Any]],
) -> None:
    response = Answer(
        segments=segments_of(segments, words=True),
        word_timestamps=words_of(segments_of(segments, words=True)),
        detected_language="en",
        transcription=" ".join(segment["text"] for segment in segments),
        device="cpu",
        model="base",
        duration=1.5,
        timings=Timings(),
        request_id="1",
    ).model_dump()
    assert plain(response)
    assert json.loads(json.dumps(response, allow_nan=False)) == response
    for segment, answered in zip(segments, response["segments"], strict=True):
        assert answered["text"] == segment["text"].strip()
        assert answered["tokens"] == segment["tokens"]
        for field in ("avg_logprob", "compression_ratio", "no_speech_prob"):
            finite = math.isfinite(segment[field])
            assert answered[field] == (segment[field] if finite else None)
    words = [word for segment in segments for word in segment.get("words", [])]
    assert [word["word"] for word in response["word_timestamps"]] == [
        word["word"].strip() for word in words
    ]
    assert [word["start"] for word in response["word_timestamps"]] == [
        word["start"] for word in words
    ]

    for segment, answered in zip(segments, response["segments"], strict=True):
        assert [word["word"] for word in answered["words"]] == [
            word["word"] for word in segment.get("words", [])
        ]
    without = [segment.model_dump() for segment in segments_of(segments, words=False)]
    assert not any("words" in segment for segment in without)


def test_numbers_that_whisper_could_not_tell_are_null() -> None:
    word = Word.model_validate(
        {"word": " a", "start": 0, "end": 1, "probability": np.float32("nan")}
    )
    assert word.model_dump() == {
        "word": "a",
        "start": 0.0,
        "end": 1.0,
        "probability": None,
    }


def test_the_timings_a_response_does_not_know_are_zero() -> None:
    assert set(Timings().model_dump().values()) == {0.0}
