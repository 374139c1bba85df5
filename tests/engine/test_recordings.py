"""Real speech with real weights: the engine against `whisper.transcribe`, alone and in batches."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from whisper.model import MultiHeadAttention
from whisper.tokenizer import get_tokenizer

from deployments.engine import Engine, Usage
from tools.equality import LADDER, OPTIONS, compared
from tools.official import official, official_model, waveform

# Every recording, and every kind of option, so that all of them meet in the same batches.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("jfk.flac", OPTIONS["beam 5"]),
    ("jfk.mp3", OPTIONS["greedy"]),
    ("jfk-phone.wav", OPTIONS["ladder with words"]),
    ("gettysburg.wav", {"temperature": 0.0, "beam_size": 3, "patience": 2.0}),
    ("gettysburg.wav", {"temperature": 0.0, "word_timestamps": True}),
    ("sonnet.aac", {"temperature": 0.0, "initial_prompt": "Shakespeare, Sonnet 1."}),
    ("sonnet.ogg", {"temperature": 0.4, "beam_size": None, "best_of": 3}),
    ("coxinha.wav", OPTIONS["ladder with words"]),
    ("declaracao.ogg", {"temperature": 0.0, "beam_size": 5, "task": "translate"}),
    ("declaracao.ogg", {"temperature": 0.0, "clip_timestamps": "2,9.5,11"}),
    ("montagne.ogg", {"temperature": 0.0, "beam_size": 8, "length_penalty": 0.6}),
    ("veneno.m4a", {"temperature": 0.0, "suppress_tokens": "11,13"}),
    (
        "weissenburg.webm",
        {
            "temperature": LADDER,
            "word_timestamps": True,
            "hallucination_silence_threshold": 1.0,
        },
    ),
    ("silence.wav", OPTIONS["ladder with words"]),
]


# Few and short cases, for the fast tier of tests.
SHORT_CASES: list[tuple[str, dict[str, Any]]] = [
    ("jfk.flac", OPTIONS["beam 5"]),
    ("jfk.mp3", OPTIONS["greedy"]),
    ("jfk-phone.wav", {"temperature": 0.0, "word_timestamps": True}),
    ("silence.wav", {"temperature": 0.0, "beam_size": 3}),
]

EQUAL = ("equal", "equal, sampled windows too")


@pytest.fixture(scope="module", autouse=True)
def all_cores(one_thread: None) -> Iterator[None]:
    """The models here are large enough to gain from more threads."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(official_model("base")) as engine:
        yield engine


def transcribe(engine: Engine, name: str, options: dict[str, Any]) -> dict[str, Any]:
    return engine.transcribe(waveform(name), **options)


def assert_equal_to_official(
    engine: Engine, model: str, cases: list[tuple[str, dict[str, Any]]]
) -> None:
    """Transcribe the cases, eight at a time, and compare each with `whisper.transcribe`."""
    usages: list[Usage] = []

    def run(case: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        name, options = case
        return engine.transcribe(waveform(name), on_usage=usages.append, **options)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(run, cases))
    assert max(usage.occupancy for usage in usages) > 2
    assert MultiHeadAttention.use_sdpa is True
    for (name, options), ours in zip(cases, results, strict=True):
        defaults = {"beam_size": None, "best_of": None}
        expected = official(model, name, **defaults | options)
        outcome = compared(ours, expected)["outcome"]
        assert outcome in EQUAL, (name, options, outcome)


def test_short_recordings_in_a_batch_give_what_whisper_gives() -> None:
    with Engine(official_model("tiny.en")) as engine:
        assert_equal_to_official(engine, "tiny.en", SHORT_CASES)


@pytest.mark.slow
def test_recordings_in_mixed_batches_of_eight_give_what_whisper_gives(
    engine: Engine,
) -> None:
    assert_equal_to_official(engine, "base", CASES)


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 7])
def test_a_recording_alone_gives_what_it_gives_in_a_batch(
    engine: Engine, number: int
) -> None:
    name, options = CASES[number]
    usages: list[Usage] = []
    alone = engine.transcribe(waveform(name), on_usage=usages.append, **options)
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(transcribe, engine, *CASES[2]) for _ in range(2)]
        together = transcribe(engine, name, options)
        for other in others:
            other.result()
    assert usages[0].occupancy == 1
    assert compared(together, alone)["outcome"] in EQUAL


@pytest.mark.parametrize(
    "model", [pytest.param("base", marks=pytest.mark.slow), "tiny.en"]
)
def test_the_assertions_of_upstreams_own_test_hold(model: str) -> None:
    """Source: tests/test_transcribe.py of openai-whisper."""
    reference = official_model(model)
    with Engine(reference) as engine:
        result = engine.transcribe(
            waveform("jfk.flac"),
            language="en" if model.endswith(".en") else None,
            temperature=0.0,
            word_timestamps=True,
        )
    assert result["language"] == "en"
    assert result["text"] == "".join(s["text"] for s in result["segments"])
    text = result["text"].lower()
    assert "my fellow americans" in text
    assert "your country" in text
    assert "do for you" in text

    tokenizer = get_tokenizer(
        reference.is_multilingual, num_languages=reference.num_languages
    )
    tokens = [t for segment in result["segments"] for t in segment["tokens"]]
    assert tokenizer.decode(tokens) == result["text"]
    assert tokenizer.decode_with_timestamps(tokens).startswith("<|0.00|>")

    americans = [
        word
        for segment in result["segments"]
        for word in segment["words"]
        if word["word"].strip(" ,") == "Americans"
    ]
    for segment in result["segments"]:
        for word in segment["words"]:
            assert word["start"] < word["end"]
    assert americans
    for word in americans:
        assert word["start"] <= 1.8
        assert word["end"] >= 1.8
