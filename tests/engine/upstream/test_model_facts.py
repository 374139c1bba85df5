import pytest
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

from deployments.engine.upstream.decoding import plan_for
from deployments.engine.upstream.model_facts import ModelFacts, prompt_tokens
from tests.support.engine.lively_whisper import lively_whisper

PROMPT = "Names: Ada, Grace."


@pytest.fixture(scope="module")
def facts(tiny_model: Whisper) -> ModelFacts:
    return ModelFacts.of(tiny_model, tiny_model.device)


def test_whisper_keeps_as_many_tokens_of_a_prompt_as_the_facts_say(
    facts: ModelFacts,
) -> None:
    assert facts.max_prompt_tokens == 223
    for length in (223, 224, 300):
        options = DecodingOptions(language="en", prompt=[*range(length)])
        kept = plan_for(facts, options).prompt
        sot = facts.tokenizer.sot_prev
        start = kept.index(sot) + 1
        assert list(kept[start : start + 223]) == [*range(length)][-223:]
        assert kept[start + 223] == facts.tokenizer.sot


def test_a_prompt_as_text_is_read_as_whisper_reads_it(facts: ModelFacts) -> None:
    as_text = DecodingTask(facts, DecodingOptions(language="en", prompt=f"  {PROMPT} "))
    tokens = prompt_tokens(facts.tokenizer, f"  {PROMPT} ")
    assert as_text.initial_tokens[1 : 1 + len(tokens)] == tuple(tokens)
    assert facts.tokenizer.decode(tokens) == f" {PROMPT}"


@pytest.mark.parametrize(
    ("size", "languages"), [(51864, 0), (51865, 99), (51866, 100)], ids=str
)
def test_the_vocabulary_is_that_of_the_models_tokenizer(
    size: int, languages: int
) -> None:
    model = lively_whisper(n_vocab=size)
    facts = ModelFacts.of(model, model.device)
    tokenizer = facts.tokenizer
    vocabulary = facts.vocabulary
    assert facts.is_multilingual is (languages > 0)
    if languages:
        assert len(tokenizer.all_language_codes) == languages
    assert vocabulary.size == size
    assert vocabulary.size - vocabulary.timestamp_begin == 1501
    assert (vocabulary.eot, vocabulary.no_timestamps) == (
        tokenizer.eot,
        tokenizer.no_timestamps,
    )
