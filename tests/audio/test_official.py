"""The kept results of official decoding: when they are taken, and whether they still hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import official
from tools.equality import compared

CASES = official.recorded_cases()
TINY = {
    "text": " Hi.",
    "language": "en",
    "segments": [],
}


def case_id(case: dict[str, Any]) -> str:
    return f"{case['model']} {case['file']} {json.dumps(case['options'])}"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A file of results with one case, of weights whose digest is "known"."""
    case: dict[str, Any] = {"model": "tiny.en", "weights": "known", "file": "jfk.mp3"}
    case |= {"options": {"beam_size": 7}, "result": TINY}
    path = tmp_path / "official.json"
    path.write_text(json.dumps([case]))
    monkeypatch.setattr(official, "RESULTS", path)
    monkeypatch.setattr(official, "weights_digest", lambda _: "known")
    monkeypatch.setattr(official, "transcribe", lambda *_, **__: {"text": " Decoded."})
    return case


def test_a_kept_result_is_taken_where_the_weights_are_the_same(kept: object) -> None:
    assert official.official("tiny.en", "jfk.mp3", beam_size=7) == TINY


def test_other_weights_are_decoded_here(
    kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "weights_digest", lambda _: "unknown")
    result = official.official("tiny.en", "jfk.mp3", beam_size=8)
    assert result == {"text": " Decoded."}


def test_the_error_of_a_missing_case_says_how_to_add_it(kept: object) -> None:
    with pytest.raises(official.MissingCaseError) as caught:
        official.official("tiny.en", "jfk.mp3", beam_size=3)
    assert str(caught.value) == (
        "not in official.json:"
        """ python -m tools.official --add tiny.en jfk.mp3 '{"beam_size": 3}'"""
    )


def test_an_answer_that_differs_from_the_kept_result_is_compared_with_one_made_here(
    kept: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"transcription": "Ho.", "detected_language": "en", "segments": []}
    here = TINY | {"text": " Ho."}
    monkeypatch.setattr(official, "transcribe", lambda *_, **__: here)
    official.assert_official(answer, "tiny.en", "jfk.mp3", beam_size=7)
    with pytest.raises(AssertionError, match="'Hum.' instead of 'Ho.'"):
        official.assert_official(
            answer | {"transcription": "Hum."}, "tiny.en", "jfk.mp3", beam_size=7
        )


def test_no_case_is_kept_twice() -> None:
    identified = [(case_id(case), case["weights"]) for case in CASES]
    assert CASES and len(set(identified)) == len(CASES)


def test_every_difference_is_found() -> None:
    segment = dict.fromkeys(official.SEGMENT_FIELDS, 1.0) | {"text": " Hi."}
    word = {"word": " Hi.", "start": 0.0, "end": 1.0, "probability": 0.9}
    expected: dict[str, Any] = {"text": " Hi.", "language": "en"}
    expected |= {"segments": [segment | {"words": [word]}]}

    def answer() -> dict[str, Any]:
        stripped = {"word": "Hi.", "start": 0.0, "end": 1.0, "probability": 0.9}
        return {
            "transcription": "Hi.",
            "detected_language": "en",
            "segments": [segment | {"text": "Hi.", "words": [dict(word)]}],
            "word_timestamps": [stripped],
        }

    official.assert_equals_official(answer(), expected)
    rounded = answer()
    rounded["segments"][0]["avg_logprob"] += official.ROUNDING / 2
    rounded["word_timestamps"][0]["probability"] -= official.ROUNDING / 2
    official.assert_equals_official(rounded, expected)
    paths: list[list[Any]] = [
        *([name] for name in ("transcription", "detected_language", "segments")),
        *(["segments", 0, field] for field in official.SEGMENT_FIELDS),
        *(["segments", 0, "words", 0, field] for field in word),
        ["segments", 0, "words"],
        *(["word_timestamps", 0, field] for field in word),
        ["word_timestamps"],
    ]
    for path in paths:
        wrong: Any = answer()
        place = wrong
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = [] if isinstance(place[path[-1]], list) else -7.0
        with pytest.raises(AssertionError):
            official.assert_equals_official(wrong, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_kept_result_is_what_official_decoding_gives_here(
    case: dict[str, Any],
) -> None:
    known = case["weights"] == official.weights_digest(case["model"])
    assert known, "other weights: python -m tools.official computes all cases anew"
    options = {"temperature": official.DEFAULTS["temperature"]} | case["options"]
    again = official.transcribe(
        case["model"], official.waveform(case["file"]), **options
    )
    outcome = compared(again, case["result"])["outcome"]
    assert outcome != "DIFFERENT"
