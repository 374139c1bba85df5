"""The engine's results are those of `whisper.transcribe`, alone and together with others."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from whisper.model import MultiHeadAttention, Whisper

from deployments.engine import Engine
from tests.support.engine.calls import (
    BRIEF,
    PATIENCE_S,
    Result,
    assert_same,
    assert_same_segments,
    exact_engine,
    official,
)
from tests.support.engine.lively_whisper import lively_whisper
from tests.support.engine.tiny_whisper import as_float, recording, sounds

GREEDY: dict[str, Any] = {"language": "en", "temperature": 0.0, "sample_len": 12}
# With these thresholds some windows are accepted without sampling, and others are not.
FALLBACK = {"temperature": (0.0, 0.4), "logprob_threshold": -2.2, "best_of": 2}
SECONDS = 42.005


@pytest.fixture(scope="module")
def model() -> Whisper:
    return lively_whisper(n_audio_ctx=1500)


@pytest.fixture(scope="module")
def whispers(model: Whisper) -> Iterator[Engine]:
    """The engine behind the comparisons."""
    with exact_engine(model) as engine:
        yield engine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 3, "patience": 2.0, "length_penalty": 0.5},
        {"beam_size": 5, "best_of": 5},
        {"language": None},
        {"language": "pt", "task": "translate", "beam_size": 2},
        {"word_timestamps": True},
        {"word_timestamps": True, "language": None, "beam_size": 5},
        {
            "word_timestamps": True,
            "hallucination_silence_threshold": 0.5,
            "prepend_punctuations": "(",
            "append_punctuations": ")",
        },
        {"word_timestamps": True, "clip_timestamps": "3.21,4,11.1,12.5"},
        {"clip_timestamps": "5,12.5,20,31"},
        {"clip_timestamps": [31.0]},
        {"clip_timestamps": [31.0], "language": None},
        {"initial_prompt": "Names: Ada, Grace."},
        {"initial_prompt": "Names: Ada.", "carry_initial_prompt": True},
        {"condition_on_previous_text": False, "beam_size": 2},
        {"without_timestamps": True, "prefix": "So"},
        {
            "suppress_tokens": "",
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
        },
        {"no_speech_threshold": 0.02, "logprob_threshold": 0.0},
        {"sample_len": None, "max_initial_timestamp": None},
        {"sample_len": 1},
    ],
    ids=str,
)
def test_the_result_is_that_of_whisper_transcribe(
    whispers: Engine, model: Whisper, options: dict[str, Any]
) -> None:
    audio = sounds(SECONDS)
    options = GREEDY | options
    ours = whispers.transcribe(audio, **options)
    assert_same(ours, official(model, audio, **options))
    assert len(ours["segments"]) > 0


@pytest.mark.parametrize(
    "variant",
    [{"n_vocab": 51864}, {"n_vocab": 51866, "n_mels": 128}],
    ids=["English", "large-v3"],
)
def test_models_with_other_vocabularies_give_the_result_of_whisper_transcribe(
    variant: dict[str, int],
) -> None:
    model, audio = lively_whisper(n_audio_ctx=1500, **variant), sounds(SECONDS)
    mixed: list[dict[str, Any]] = [
        {"language": None},
        {"beam_size": 5, "word_timestamps": True},
        {"initial_prompt": "Names: Ada, Grace."},
    ]
    with exact_engine(model) as engine:
        for options in mixed:
            ours = engine.transcribe(audio, **GREEDY | options)
            assert_same(ours, official(model, audio, **GREEDY | options))


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_windows_before_the_first_that_is_sampled_are_those_of_whisper_transcribe(
    whispers: Engine, model: Whisper, seed: int
) -> None:
    audio, options = sounds(SECONDS, seed), GREEDY | FALLBACK
    ours = whispers.transcribe(audio, **options)["segments"]
    theirs = official(model, audio, **options)["segments"]
    assert 0 < len(_unsampled(ours)) < len(ours)
    assert_same_segments(_unsampled(ours), _unsampled(theirs))
    # The first sampled window is the same one.
    assert _first_sampled(ours)["seek"] == _first_sampled(theirs)["seek"]


def _unsampled(segments: list[Result]) -> list[Result]:
    return list(itertools.takewhile(lambda s: s["temperature"] == 0, segments))


def _first_sampled(segments: list[Result]) -> Result:
    return segments[len(_unsampled(segments))]


def test_float_and_int16_samples_give_the_same_result(whispers: Engine) -> None:
    audio = sounds(12)
    ours = whispers.transcribe(audio, **GREEDY)
    assert ours == whispers.transcribe(as_float(audio), **GREEDY)


def test_nothing_is_said_of_precision_on_a_cpu(
    engine: Engine, recwarn: pytest.WarningsRecorder
) -> None:
    engine.transcribe(recording(1), **BRIEF)
    assert [str(warning.message) for warning in recwarn if "FP16" in str(warning)] == []


def test_samples_depend_on_nothing_that_ran_before(
    whispers: Engine, model: Whisper
) -> None:
    options = GREEDY | {"temperature": 0.8, "best_of": 3}
    audio = sounds(SECONDS)
    first = whispers.transcribe(audio, **options)
    whispers.transcribe(sounds(12, seed=7), **options)
    assert_same(whispers.transcribe(audio, **options), first)
    with exact_engine(model, max_windows=1) as other:
        assert_same(other.transcribe(audio, **options), first)


def test_samples_of_different_windows_are_drawn_independently(engine: Engine) -> None:
    options = BRIEF | {"temperature": 1.0, "condition_on_previous_text": False}
    audio = recording(5).repeat(2)
    result = engine.transcribe(audio, clip_timestamps="0,5,5,10", **options)
    first, second = result["segments"][0], result["segments"][-1]
    assert first["seek"] != second["seek"]
    assert first["tokens"] != second["tokens"]


MIXED: list[tuple[float, dict[str, Any]]] = [
    (33, {}),
    (5, {"beam_size": 5}),
    (20, {"language": None}),
    (33, {"language": None, "beam_size": 3, "patience": 2.0}),
    (35, {"word_timestamps": True}),
    (12, {"word_timestamps": True, "language": None, "beam_size": 2}),
    (33, {"temperature": 0.6, "best_of": 4}),
    (35, FALLBACK | {"beam_size": 4}),
    (20, FALLBACK | {"word_timestamps": True, "language": None}),
    (33, {"initial_prompt": "Names: Ada, Grace.", "beam_size": 5}),
    (20, {"initial_prompt": "Ada. " * 200, "task": "translate", "language": "pt"}),
    (70, {"sample_len": 6, "condition_on_previous_text": False}),
    (4, {"without_timestamps": True, "temperature": 1.0}),
    (0.1, {}),
]


WITH_WORDS = 4


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    return [sounds(seconds, seed) for seed, (seconds, _) in enumerate(MIXED)]


@pytest.fixture(scope="module")
def one_by_one(whispers: Engine, recordings: list[np.ndarray]) -> list[Result]:
    return [
        whispers.transcribe(audio, **GREEDY | options)
        for audio, (_, options) in zip(recordings, MIXED, strict=True)
    ]


@pytest.mark.parametrize("encoder_windows", [1, 4])
def test_calls_from_many_threads_get_the_results_of_calls_one_by_one(
    model: Whisper,
    threads: ThreadPoolExecutor,
    recordings: list[np.ndarray],
    one_by_one: list[Result],
    encoder_windows: int,
) -> None:
    with exact_engine(model, 6, encoder_windows) as engine:
        futures = [
            threads.submit(engine.transcribe, audio, **GREEDY | options)
            for audio, (_, options) in zip(recordings, MIXED, strict=True)
        ]
        together = [future.result(PATIENCE_S) for future in futures]
    for ours, expected in zip(together, one_by_one, strict=True):
        assert_same(ours, expected)
    assert len({str(result["segments"]) for result in together}) == len(MIXED)
    assert len({result["language"] for result in together}) > 2


def test_whisper_itself_may_run_at_the_same_time(
    model: Whisper,
    whispers: Engine,
    threads: ThreadPoolExecutor,
    recordings: list[np.ndarray],
    one_by_one: list[Result],
) -> None:
    audio, words = recordings[WITH_WORDS], GREEDY | MIXED[WITH_WORDS][1]
    futures = [threads.submit(whispers.transcribe, audio, **words) for _ in range(4)]
    theirs = official(model, audio, **words)
    for future in futures:
        assert_same(future.result(PATIENCE_S), one_by_one[WITH_WORDS])
    assert_same(theirs, one_by_one[WITH_WORDS])
    assert MultiHeadAttention.use_sdpa is True
