"""What was cut or is doubtful is told. Random weights; the tokenizer is Whisper's own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deployments.audio.speech import Chunks, Span
from deployments.contract.chunking import ServerVad
from deployments.contract.options import TranscriptionOptions
from deployments.engine import Engine
from deployments.replica.warnings import (
    chunk_warnings,
    language_warnings,
    warnings_of,
)
from tests.support.engine.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(tiny_whisper(), max_windows=1) as engine:
        yield engine


def warnings(engine: Engine, seconds: float = 10, **fields: Any) -> list[str]:
    audio = np.zeros(int(seconds * 16_000), dtype=np.int16)
    return warnings_of(TranscriptionOptions(**fields), engine, audio)


def test_an_ordinary_request_has_none(engine: Engine) -> None:
    assert warnings(engine) == []
    assert warnings(engine, task="translate", initial_prompt="Names: Ada") == []
    assert warnings(engine, clip_timestamps="0,10") == []


def test_a_prompt_that_is_cut_is_told(engine: Engine) -> None:
    most = engine.max_prompt_tokens
    fits = "so " * (most - 1)
    assert engine.count_prompt_tokens(fits) == most - 1
    assert warnings(engine, initial_prompt=fits) == []
    [warning] = warnings(engine, initial_prompt="so " * (most + 5))
    assert warning == (
        f"initial_prompt has {most + 5} tokens; Whisper used the last {most}"
    )


def test_word_times_of_a_translation_are_told_to_be_doubtful(engine: Engine) -> None:
    [warning] = warnings(engine, task="translate", word_timestamps=True)
    assert warning.startswith("word_timestamps of a translation are not reliable")


def test_a_clip_that_the_recording_does_not_reach_is_told(engine: Engine) -> None:
    [warning] = warnings(engine, clip_timestamps=[2, 10.5])
    assert warning == (
        "clip_timestamps go past the end of the recording, which is 10.00 s long"
    )


def segment(seek: int, no_speech_prob: float) -> dict[str, Any]:
    return {"seek": seek, "no_speech_prob": no_speech_prob}


def language(
    *segments: dict[str, Any], probability: float | None = 0.4, **fields: Any
) -> list[str]:
    options = TranscriptionOptions(**fields)
    return language_warnings(options, "en", probability, segments)


@pytest.mark.parametrize(
    "segments",
    [
        # As official Whisper transcribes 40 s of silence with speech behind it.
        [segment(0, 0.936), segment(3000, 0.041)],
        # Where it leaves the silent window out.
        [segment(3000, 0.041)],
        [],
    ],
)
def test_a_language_that_was_detected_in_silence_is_told(
    segments: list[dict[str, Any]],
) -> None:
    [warning] = language(*segments)
    assert warning == (
        "The language 'en' was detected in the first 30 s, where no speech was found:"
        " it is a guess, so name the language"
    )


def test_a_language_that_was_detected_in_a_chunk_without_speech_is_told() -> None:
    chunk = Span(40 * 16_000, 65 * 16_000)
    options = TranscriptionOptions(chunking_strategy=ServerVad())
    [warning] = language_warnings(options, "en", 0.5, [segment(4000, 0.9)], chunk)
    assert warning == (
        "The language 'en' was detected in the first chunk, where no speech was found:"
        " it is a guess, so name the language"
    )
    assert language_warnings(options, "en", 0.5, [segment(7000, 0.1)], chunk)
    assert not language_warnings(options, "en", 0.5, [segment(4000, 0.1)], chunk)


def test_cuts_within_speech_are_told() -> None:
    span = Span(0, 16_000)
    assert chunk_warnings(Chunks([span], [])) == []
    [warning] = chunk_warnings(Chunks([span], [16_000 * 25, 16_000 * 47 + 800]))
    assert warning == (
        "chunking_strategy: speech went on for more than 30 s without a pause, so it was cut at its"
        " quietest place, in second 25.00, 47.05; words there may be lost or come twice"
    )
    [many] = chunk_warnings(Chunks([span], [16_000 * n for n in range(9)]))
    assert "in second 0.00, 1.00, 2.00, 3.00, 4.00 and 4 more;" in many


def test_a_language_that_was_heard_or_named_is_not_doubted() -> None:
    assert language(segment(0, 0.05), segment(3000, 0.9)) == []
    assert language(segment(0, 0.9), probability=None) == []
    assert language(segment(4000, 0.9), clip_timestamps=[40.0]) == []


def test_a_language_that_is_not_quite_the_one_asked_for_is_told(engine: Engine) -> None:
    assert warnings(engine, language="pt-BR") == []
    assert warnings(engine, language="nb") == [
        "language 'nb' (Norwegian Bokmål) was taken as 'no' (Norwegian)"
    ]


@pytest.mark.parametrize("clips", [[], [0], [3], [0, 5, 5, 10], [1, 2, 3]])
def test_clips_in_order_need_no_warning(engine: Engine, clips: list[float]) -> None:
    assert warnings(engine, clip_timestamps=clips) == []


def test_clips_that_hold_nothing_are_told(engine: Engine) -> None:
    [warning] = warnings(engine, clip_timestamps=[0, 2, 5, 5, 7.001, 7.004, 9, 8])
    assert warning == (
        "clip_timestamps: 3 of 4 clips end where they start or before; Whisper left them out"
    )


@pytest.mark.parametrize("clips", [[20, 30], [11], [2, 4, 12, 15]])
def test_a_clip_beyond_the_end_is_not_told_to_be_empty_too(
    engine: Engine, clips: list[float]
) -> None:
    [warning] = warnings(engine, clip_timestamps=clips)
    assert warning.startswith("clip_timestamps go past the end")


def test_the_shortest_recording_needs_no_warning(engine: Engine) -> None:
    assert warnings(engine, seconds=0.004) == []


@pytest.mark.parametrize("clips", [[5, 8, 0, 3], [0, 5, 4, 6], [0, 5, 0, 5], [5, 8, 7]])
def test_clips_that_overlap_or_go_back_are_told(
    engine: Engine, clips: list[float]
) -> None:
    [warning] = warnings(engine, clip_timestamps=clips)
    assert warning.startswith("clip_timestamps overlap or go back")
