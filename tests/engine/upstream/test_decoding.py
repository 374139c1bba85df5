"""What is read from `DecodingTask`, and what becomes of the result."""

from typing import Any

import numpy as np
import pytest
import torch
from whisper.decoding import DecodingOptions, detect_language
from whisper.model import Whisper

from deployments.engine.decoding.beam_search import Backpointers
from deployments.engine.decoding.plan import DecodePlan, Outcome
from deployments.engine.upstream.decoding import (
    language_probabilities,
    plan_for,
    result_of,
)
from deployments.engine.upstream.model_facts import ModelFacts
from tests.support.engine import devices
from tests.support.engine.lively_whisper import lively_whisper, noise_mel, tokenizer


@pytest.fixture(scope="module")
def facts(tiny_model: Whisper) -> ModelFacts:
    return ModelFacts.of(tiny_model, tiny_model.device)


def plan(facts: ModelFacts, **options: Any) -> DecodePlan:
    return plan_for(facts, DecodingOptions(**{"language": "en"} | options))


def test_a_plan_without_options_is_greedy(facts: ModelFacts) -> None:
    names, greedy = facts.tokenizer, plan(facts)
    assert greedy.prompt[greedy.sot_index] == names.sot
    assert greedy.no_speech == names.no_speech
    assert (greedy.width, greedy.finished_needed, greedy.samples) == (1, None, False)
    assert greedy.steps == 224
    # The timestamps of 0.00 to 1.00 seconds.
    assert greedy.initial_timestamps == 51
    blank = names.encode(" ")
    assert greedy.suppressed_first == (*blank, names.eot)
    assert {*greedy.forbidden(first=True)} - {*greedy.forbidden(first=False)} == {
        *blank,
        names.eot,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beam_size": 5}, {"width": 5, "finished_needed": 5}),
        ({"beam_size": 4, "patience": 0.5}, {"width": 4, "finished_needed": 2}),
        ({"temperature": 0.4, "best_of": 3}, {"width": 3, "samples": True}),
        ({"sample_len": 7}, {"steps": 7}),
        ({"without_timestamps": True}, {"initial_timestamps": None}),
        ({"max_initial_timestamp": None}, {"initial_timestamps": 1501}),
        ({"suppress_tokens": [5, -1]}, {}),
        ({"suppress_tokens": "", "suppress_blank": False}, {"suppressed_first": ()}),
    ],
    ids=str,
)
def test_options_find_their_way_into_the_plan(
    facts: ModelFacts, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = plan(facts, **options)
    assert {name: getattr(made, name) for name in expected} == expected


def test_draws_depend_on_the_number_of_the_decoding_alone(facts: ModelFacts) -> None:
    made = plan(facts, temperature=0.5, best_of=2, sample_len=6)
    first = made.uniforms(1)
    assert (first.shape, first.dtype) == ((6, 2), torch.float64)
    assert torch.equal(first, made.uniforms(1))
    assert not torch.equal(first, made.uniforms(2))


def test_a_result_without_an_end_has_all_its_tokens(facts: ModelFacts) -> None:
    names = facts.tokenizer
    tokens = names.encode(" Hello world.")
    column = np.array(tokens)[:, None]
    found = Backpointers(
        tokens=column,
        parents=np.zeros_like(column),
        finished_scores=np.full(column.shape, np.nan),
        finished_parents=np.zeros_like(column),
        scores=np.array([-2.0]),
    )
    options = DecodingOptions(language="de")
    result = result_of(Outcome(found, 0.25), plan(facts), options, names)
    assert (result.tokens, result.text) == (tokens, "Hello world.")
    assert result.avg_logprob == pytest.approx(-2.0 / (len(tokens) + 1))
    assert (result.no_speech_prob, result.language) == (0.25, "de")


def test_probabilities_of_languages_are_whispers() -> None:
    model = lively_whisper()
    names, reference = tokenizer(model), devices.official(model)
    mel = noise_mel(model).to(reference.device)
    features = reference.encoder(mel[None])
    _, (expected,) = detect_language(reference, features, names)
    sot = torch.tensor([[names.sot]], device=reference.device)
    logits = reference.logits(sot, features)[0, 0].to(model.device)
    assert language_probabilities(logits, names) == pytest.approx(expected, abs=1e-6)
