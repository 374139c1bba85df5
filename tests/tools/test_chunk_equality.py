"""The comparison of chunks with official results finds what differs, and nothing else."""

import copy
import math
from typing import Any

import pytest

from deployments.contract.answer import Chunk, segments_of, words_of
from deployments.replica.transcript import Transcript
from tools.chunk_equality import (
    compared_chunks,
    differences_of_the_whole,
    lengths,
    with_our_draws,
)
from tools.equality import PARTED

CHUNKS = [Chunk(start=1.5, end=29.29), Chunk(start=29.29, end=40.004)]


def segment(seek: int, start: float, end: float, text: str) -> dict[str, Any]:
    word = {"word": text, "start": start, "end": end, "probability": 0.9}
    return {
        "id": 0,
        "seek": seek,
        "start": start,
        "end": end,
        "text": text,
        "tokens": [50364, 42, 50365],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.5,
        "no_speech_prob": 0.01,
        "words": [word],
    }


def official() -> list[dict[str, Any]]:
    """Of each chunk, with the chunk's own times."""
    first = [segment(0, 0.0, 4.0, " One."), segment(2700, 27.1, 27.79, " Two.")]
    second = [segment(0, 0.3, 10.71, " Three.")]
    return [
        {"text": " One. Two.", "language": "en", "segments": first},
        {"text": " Three.", "language": "en", "segments": second},
    ]


def ours(**changed: Any) -> Transcript:
    """The same of the whole recording. changed: fields of the second segment"""
    segments = [
        segment(150, 1.5, 5.5, " One."),
        segment(2850, 28.6, 29.29, " Two.") | {"id": 1},
        segment(2929, 29.59, 40.0, " Three.") | {"id": 2},
    ]
    segments[1] |= changed
    answered = segments_of(segments, words=True)
    return Transcript(
        segments=answered,
        words=words_of(answered),
        text=" One. Two. Three.",
        language="en",
        language_probability=None,
        device="cpu",
        queue_s=0.0,
        transcribe_s=1.0,
        batch_windows=1.0,
        warnings=[],
        chunks=CHUNKS,
    )


def outcomes(transcript: Transcript, expected: list[dict[str, Any]]) -> list[str]:
    return [one["outcome"] for one in compared_chunks(transcript, expected)]


def test_equal_chunks_are_equal_with_their_times_in_the_recording() -> None:
    assert outcomes(ours(), official()) == ["equal", "equal"]
    assert differences_of_the_whole(ours(), official()) == []


def test_chunks_without_words_are_compared_as_well() -> None:
    expected = official()
    for result in expected:
        for one in result["segments"]:
            del one["words"]
    transcript = ours()
    for given in transcript.segments:
        object.__setattr__(given, "words", None)
    object.__setattr__(transcript, "words", None)
    assert outcomes(transcript, expected) == ["equal", "equal"]
    assert differences_of_the_whole(transcript, expected) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"start": 28.61},
        {"end": 29.28},
        {"seek": 2851},
        {"tokens": [50364, 43, 50365]},
        {"text": " Too."},
        {"temperature": 0.2},
        {"avg_logprob": -0.26},
        {"no_speech_prob": math.nan},
        {"words": []},
        {"words": [segment(0, 28.61, 29.29, " Two.")["words"][0]]},
        {"words": [segment(0, 28.6, 29.29, "Two.")["words"][0]]},
    ],
    ids=str,
)
def test_a_difference_is_found_in_its_chunk(changed: dict[str, Any]) -> None:
    assert outcomes(ours(**changed), official()) == ["DIFFERENT", "equal"]


def test_a_segment_that_is_missing_or_in_another_chunk_is_found() -> None:
    expected = official()
    expected[1]["segments"].append(segment(0, 10.0, 10.5, " Four."))
    assert outcomes(ours(), expected) == ["equal", "DIFFERENT"]
    assert outcomes(ours(seek=2929), official()) == ["DIFFERENT", "DIFFERENT"]
    beyond = ours(seek=4001)
    assert outcomes(beyond, official()) == ["DIFFERENT", "equal"]
    assert len(differences_of_the_whole(beyond, official())) == 1


def test_another_language_is_found() -> None:
    expected = official()
    expected[0]["language"] = "de"
    assert outcomes(ours(), expected) == ["DIFFERENT", "equal"]


def test_what_follows_a_sampled_window_is_told_apart() -> None:
    expected = official()
    expected[0]["segments"][1] |= {"temperature": 0.2, "tokens": [1]}
    expected[0]["segments"][1]["text"] = " Too."
    expected[0]["text"] = " One. Too."
    transcript = ours(temperature=0.2)
    found = [*compared_chunks(transcript, expected)]
    assert [one["outcome"] for one in found] == [PARTED, "equal"]
    whole = [*with_our_draws(transcript, expected, found)]
    assert differences_of_the_whole(transcript, whole) == []
    whole[1]["text"] = " Tree."
    assert differences_of_the_whole(transcript, whole) != []


def test_a_text_words_or_numbers_of_the_whole_that_are_wrong_are_found() -> None:
    assert differences_of_the_whole(ours(id=7), official()) != []
    other = copy.deepcopy(official())
    other[0]["text"] = " One. Two"
    assert differences_of_the_whole(ours(), other) != []
    other = copy.deepcopy(official())
    other[1]["segments"][0]["words"][0]["word"] = " Tree."
    assert differences_of_the_whole(ours(), other) != []


def test_joined_recordings_keep_to_the_time_that_is_allowed() -> None:
    assert all(2 <= minutes <= 10 for minutes in lengths(20, math.inf))
    assert sum(lengths(20, 60)) == pytest.approx(60)
    assert min(lengths(20, 60)) >= 2
    assert lengths(20, 1000) == lengths(20, math.inf)
    assert lengths(0, math.inf) == []
