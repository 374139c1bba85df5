"""What `benchmarks.long_recording` counts and reports."""

import argparse
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import long_recording
from benchmarks.long_recording import counted_s, invented_words
from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Span
from tools.joined import Joined, Spoken

ARGUMENTS = argparse.Namespace(model="base", device="cpu", threads=2)


def span(start_s: float, end_s: float) -> Span:
    return Span(round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE))


def joined(minutes: int) -> Joined:
    spoken = [Spoken(span(0, 20), "Hello."), Spoken(span(40, 60), "World.")]
    pcm = np.zeros(minutes * 60 * SAMPLE_RATE, np.int16)
    return Joined(pcm, spoken, [span(20, 40)])


def result(seconds: float, words: list[tuple[str, float, float]]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "text": " Hello, world!",
        "language": "en",
        "words": words,
        "peak_bytes": 512 << 20,
    }


@pytest.mark.parametrize(
    ("start", "end", "invented"),
    [
        (9.0, 10.9, False),
        (9.9, 11.2, True),
        (14.0, 15.0, True),
        (10.3, 10.5, False),
        (19.0, 20.2, False),
        (19.0, 20.0, True),
        (5.0, 35.0, False),
        (29.8, 31.6, True),
    ],
)
def test_a_word_is_invented_if_its_middle_is_away_from_speech(
    start: float, end: float, invented: bool
) -> None:
    stretches = [span(10, 20), span(30, 40)]
    words = [("Amen.", start, end)]
    assert invented_words(words, stretches) == (["Amen."] if invented else [])


def test_the_edges_of_a_stretch_do_not_count() -> None:
    assert counted_s([span(10, 20), span(30, 40)]) == pytest.approx(18)


def test_the_table_extrapolates_what_official_whisper_did_of_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_recording, "word_error_rate", lambda *_: 0.125)
    monkeypatch.setattr(sys, "argv", ["long_recording"])
    results = {
        "official": result(30, [("You", 30, 31)]),
        "sequential": result(100, [("Hello,", 1, 2), ("You", 30, 31), ("you", 31, 32)]),
        "beside": {
            "alone": [1.0],
            "together": [4.0] * 8,
            "beside": [1.0] * 7 + [9.0],
            "note": "told",
        },
    }
    told = long_recording.page(ARGUMENTS, joined(10), joined(1), results)
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert rows[2:4] == [
        "| official | 300.0 (extrapolated from 30.0) | 2.0 | 1.00 | 0.33 | 12.5% | 1 | 3.2 | 512 |",
        "| sequential | 100.0 | 6.0 | 3.00 | 1.00 | 12.5% | 2 | 6.3 | 512 |",
    ]
    assert "| 8 together beside the long one in chunks | 1.00 | 6.20 |" in rows
    assert "Official Whisper transcribed the first 60 s." in told


def test_the_table_has_no_ratio_to_a_system_that_was_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(long_recording, "word_error_rate", lambda *_: 0.0)
    monkeypatch.setattr(sys, "argv", ["long_recording"])
    results = {"chunked": result(50, [])}
    told = long_recording.page(ARGUMENTS, joined(10), joined(1), results)
    assert "| chunked | 50.0 | 12.0 | – | – | 0.0% | 0 | 0.0 | 512 |" in told
    assert "extrapolated" not in told
