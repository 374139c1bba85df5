import re
import subprocess
import sys
from pathlib import Path

import pytest
import whisper
from whisper import tokenizer

from deployments import catalog

MODELS = list(catalog.MODELS.values())
BY_NAME = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_names_and_addresses_are_whispers_own() -> None:
    addresses = {
        name: model.url for model in MODELS for name in (model.name, *model.aliases)
    }
    assert addresses == whisper._MODELS


@BY_NAME
def test_the_hash_and_file_name_are_the_ones_in_the_address(
    model: catalog.OfficialModel,
) -> None:
    *_, sha256, filename = whisper._MODELS[model.name].split("/")
    assert (model.sha256, model.filename) == (sha256, filename)
    assert re.fullmatch("[0-9a-f]{64}", model.sha256)


def test_an_alias_leads_to_the_model_with_the_same_file() -> None:
    assert catalog.ALIASES == {"large": "large-v3", "large-v3-turbo": "turbo"}
    for alias, name in catalog.ALIASES.items():
        assert whisper._MODELS[alias] == whisper._MODELS[name]
        assert catalog.find(alias) is catalog.find(name) is catalog.MODELS[name]


def test_no_two_models_share_a_file() -> None:
    assert len({model.sha256 for model in MODELS}) == len(MODELS)


def test_an_unknown_name_finds_nothing() -> None:
    assert catalog.find("huge") is None
    assert catalog.find("Base") is None


@BY_NAME
def test_every_model_has_alignment_heads(model: catalog.OfficialModel) -> None:
    assert whisper._ALIGNMENT_HEADS[model.name]


def test_the_languages_are_whispers_own_in_the_order_of_their_tokens() -> None:
    assert list(catalog.LANGUAGES.items()) == list(tokenizer.LANGUAGES.items())


def test_the_language_names_are_whispers_own() -> None:
    assert catalog.LANGUAGE_CODES == tokenizer.TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"),
        ("PT", "pt"),
        ("Portuguese", "pt"),
        ("castilian", "es"),
        ("Haitian Creole", "ht"),
        ("yue", "yue"),
        ("klingon", None),
        ("", None),
    ],
)
def test_a_language_is_known_by_code_or_name_in_any_case(
    given: str, code: str | None
) -> None:
    assert catalog.language_code(given) == code


def test_models_without_training_in_translation_say_so() -> None:
    not_trained = {model.name for model in MODELS if not model.translates}
    assert not_trained == {"tiny.en", "base.en", "small.en", "medium.en", "turbo"}


@BY_NAME
def test_the_vocabulary_ends_with_the_last_timestamp(
    model: catalog.OfficialModel,
) -> None:
    words = tokenizer.get_tokenizer(
        model.multilingual, num_languages=model.num_languages
    )
    # 1501 timestamps, 0.00 to 30.00 s.
    assert model.n_vocab == words.timestamp_begin + 1501


@BY_NAME
def test_whispers_formulas_recover_the_kind_of_model_from_its_vocabulary(
    model: catalog.OfficialModel,
) -> None:
    # `is_multilingual` and `num_languages` of whisper.model.Whisper, without building one.
    sizes = type("Sizes", (), {"dims": type("Dims", (), {"n_vocab": model.n_vocab})})()
    multilingual = whisper.Whisper.is_multilingual.fget(sizes)
    sizes.is_multilingual = multilingual
    assert multilingual == model.multilingual
    assert whisper.Whisper.num_languages.fget(sizes) == model.num_languages


def test_the_catalogue_loads_neither_torch_nor_whisper() -> None:
    program = (
        "import sys, deployments.catalog, deployments.checkpoints.store;"
        "sys.exit(bool({'torch', 'whisper', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
