"""What a call says about itself: windows, waits, company, language; and what a prompt would take."""

import time
from typing import Any

import pytest
import whisper
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

from deployments.engine import Engine, Usage
from tests.support.engine import devices
from tests.support.engine.calls import (
    BRIEF,
    PATIENCE_S,
    Calls,
    Gate,
    exact_engine,
    succeeds,
)
from tests.support.engine.lively_whisper import lively_whisper
from tests.support.engine.tiny_whisper import as_float, recording

one_slot = pytest.mark.parametrize("slots", [1])


def test_a_call_says_what_it_has_used(engine: Engine) -> None:
    usages: list[Usage] = []
    engine.transcribe(recording(50), on_usage=usages.append, **BRIEF)
    (usage,) = usages
    assert usage.windows == engine.stats().windows_done >= 2
    assert usage.occupancy == 1
    assert 0 <= usage.queue_s < PATIENCE_S


def test_other_temperatures_for_a_window_do_not_make_it_two(engine: Engine) -> None:
    usages: list[Usage] = []
    nothing_is_good_enough = {"temperature": (0.0, 0.4, 0.8), "logprob_threshold": 0.0}
    engine.transcribe(
        recording(1), on_usage=usages.append, **BRIEF | nothing_is_good_enough
    )
    assert usages[0].windows == engine.stats().windows_done == 1


def test_a_call_whose_windows_take_one_token_each_has_no_steps(engine: Engine) -> None:
    usages: list[Usage] = []
    engine.transcribe(recording(1), on_usage=usages.append, **BRIEF | {"sample_len": 1})
    assert usages[0].occupancy == 0


def test_calls_that_decode_together_say_so(calls: Calls, gate: Gate) -> None:
    usages: list[Usage] = []
    futures = [calls.running(on_usage=usages.append) for _ in range(4)]
    gate.opened.set()
    assert all(map(succeeds, futures))
    assert len(usages) == 4
    assert all(1 < usage.occupancy <= 4 for usage in usages)
    assert calls.engine.stats().windows_done == 4


@one_slot
def test_a_call_says_how_long_its_windows_have_waited(calls: Calls, gate: Gate) -> None:
    usages: list[Usage] = []
    running = calls.running()
    waiting = calls.waiting(on_usage=usages.append)
    since = time.monotonic()
    calls.waiting()
    waited = time.monotonic() - since
    gate.opened.set()
    assert succeeds(running)
    assert succeeds(waiting)
    assert waited <= usages[0].queue_s < PATIENCE_S


def used(engine: Engine, **options: Any) -> Usage:
    usages: list[Usage] = []
    engine.transcribe(recording(35), on_usage=usages.append, **BRIEF | options)
    (usage,) = usages
    return usage


def test_a_call_says_how_sure_the_detected_language_is(
    engine: Engine, tiny_model: Whisper
) -> None:
    reference = devices.official(tiny_model)
    mel = whisper.log_mel_spectrogram(as_float(recording(35)), padding=480_000)
    window = whisper.pad_or_trim(mel, 3000).to(reference.device)
    _, probabilities = reference.detect_language(window)
    probability = used(engine, language=None).language_probability
    assert probability == pytest.approx(max(probabilities.values()), abs=1e-5)


def test_no_probability_is_told_of_a_language_that_was_given(engine: Engine) -> None:
    assert used(engine, language="en").language_probability is None


def test_an_english_model_detects_no_language() -> None:
    with exact_engine(lively_whisper(n_audio_ctx=1500, n_vocab=51864)) as engine:
        assert used(engine, language=None).language_probability is None


@pytest.mark.parametrize("text", ["", "Ada", "  Ada, Grace. ", "Ada. " * 300, "東京"])
def test_tokens_of_a_prompt_are_counted_as_whisper_counts_them(
    engine: Engine, text: str
) -> None:
    tokenizer = get_tokenizer(True, num_languages=99)
    count = len(tokenizer.encode(" " + text.strip()))
    assert engine.count_prompt_tokens(text) == count
    assert engine.max_prompt_tokens == 223


def test_what_precedes_the_last_tokens_of_a_prompt_makes_no_difference(
    engine: Engine,
) -> None:
    def texts(prompt: str) -> list[Any]:
        result = engine.transcribe(recording(2), initial_prompt=prompt, **BRIEF)
        return [segment["tokens"] for segment in result["segments"]]

    short = " Ada" * engine.max_prompt_tokens
    assert engine.count_prompt_tokens(short) == engine.max_prompt_tokens
    assert texts("Grace." + short) == texts(short)
    assert texts(" Ada" * 100) != texts(short)
