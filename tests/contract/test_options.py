"""Whisper's options as a request gives them."""

import argparse
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.decoding import (
    BeamSearchDecoder,
    DecodingOptions,
    DecodingTask,
)
from whisper.tokenizer import get_tokenizer
from whisper.transcribe import cli

from deployments import catalog
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import (
    ModelLimits,
    check_fits_model,
)
from deployments.contract.request import (
    parse_request,
)
from tests.support.contract import (
    FIELDS,
    FINITE,
    PLAIN_TEXT,
    URL,
    parse,
    refusal_of,
)

# The request table of docs/api.md.
DEFAULTS = {
    "audio": None,
    "audio_base64": None,
    "audio_headers": None,
    "audio_track": None,
    "audio_channel": None,
    "model": None,
    "language": None,
    "temperature": 0.0,
    "beam_size": 5,
    "word_timestamps": False,
    "task": "transcribe",
    "temperature_increment_on_fallback": 0.2,
    "best_of": 5,
    "patience": None,
    "length_penalty": None,
    "suppress_tokens": [-1],
    "initial_prompt": None,
    "carry_initial_prompt": False,
    "condition_on_previous_text": True,
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "hallucination_silence_threshold": None,
    "clip_timestamps": [0.0],
    "chunking_strategy": None,
    "prepend_punctuations": "\"'“¿([{-",
    "append_punctuations": "\"'.。,，!！?？:：”)]}、",
}


NULLABLE = {
    "audio_track",
    "audio_channel",
    "language",
    "beam_size",
    "temperature_increment_on_fallback",
    "best_of",
    "patience",
    "length_penalty",
    "initial_prompt",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "hallucination_silence_threshold",
    "chunking_strategy",
}


DOORS_OWN = {
    "audio",
    "audio_base64",
    "audio_headers",
    "audio_track",
    "audio_channel",
    "model",
    "temperature_increment_on_fallback",
    "chunking_strategy",
}


def options(**fields: Any) -> dict[str, Any]:
    return parse(**fields).whisper_options()


def cli_defaults(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Whisper's command line passes on when no option is given."""

    class Parsed(Exception):
        pass

    def keep_parser(parser: argparse.ArgumentParser) -> None:
        raise Parsed(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", keep_parser)
        with pytest.raises(Parsed) as caught:
            cli()
    (parser,) = caught.value.args
    return {action.dest: action.default for action in parser._actions}


def cli_ladder(temperature: float, increment: float | None) -> Any:
    """As in `whisper.transcribe.cli`."""
    if increment is not None:
        return tuple(np.arange(temperature, 1.0 + 1e-6, increment))
    return [temperature]


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert parse_request({"audio": URL}).model_dump() == DEFAULTS | {"audio": URL}


def test_the_defaults_are_those_of_whispers_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = options()
    theirs = cli_defaults(monkeypatch)
    ladder = cli_ladder(
        theirs["temperature"], theirs["temperature_increment_on_fallback"]
    )
    theirs |= {
        "temperature": ladder,
        "clip_timestamps": [float(theirs["clip_timestamps"])],
    }
    assert set(ours) <= set(theirs)
    assert ours == {name: theirs[name] for name in ours}


def test_the_defaults_are_those_of_whisper_transcribe() -> None:
    ours = options()
    parameters = inspect.signature(whisper.transcribe).parameters
    shared = set(ours) & set(parameters) - {"temperature", "clip_timestamps"}
    assert len(shared) == 10
    assert {name: ours[name] for name in shared} == {
        name: parameters[name].default for name in shared
    }
    assert ours["temperature"] == pytest.approx(parameters["temperature"].default)
    assert ours["clip_timestamps"] == [float(parameters["clip_timestamps"].default)]


def test_every_option_of_whispers_command_line_for_decoding_is_a_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_the_program = (
        "help model_dir device output_dir output_format verbose fp16 threads"
        " highlight_words max_line_width max_line_count max_words_per_line"
    )
    theirs = set(cli_defaults(monkeypatch)) - set(of_the_program.split())
    ours = "audio_base64 audio_headers audio_track audio_channel chunking_strategy"
    assert theirs == set(FIELDS) - set(ours.split())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"patience": 1.0, "beam_size": None},
            "Invalid patience: needs a beam_size",
        ),
        (
            {"patience": 0.1, "beam_size": 5},
            "Invalid patience: too small for this beam_size",
        ),
        (
            {"patience": 1e308, "beam_size": 5},
            (
                "Invalid patience: too large for this beam_size;"
                " their product may be 100 at most"
            ),
        ),
        (
            {"hallucination_silence_threshold": 2.0},
            "Invalid hallucination_silence_threshold: needs word_timestamps",
        ),
        (
            {"temperature_increment_on_fallback": 0.0099},
            "Invalid temperature_increment_on_fallback: must be 0 or at least 0.01",
        ),
    ],
)
def test_a_rule_between_fields_is_told_in_its_own_words(
    fields: dict[str, Any], text: str
) -> None:
    assert refusal_of(**fields) == text


def test_fields_that_keep_the_rules_between_them_are_accepted() -> None:
    assert parse(patience=0.2, beam_size=3).patience == 0.2
    assert parse(patience=10, beam_size=10).patience == 10.0
    request = parse(hallucination_silence_threshold=2.0, word_timestamps=True)
    assert request.hallucination_silence_threshold == 2.0


@pytest.mark.parametrize("field", sorted(NULLABLE))
def test_null_reaches_whisper_where_its_option_takes_none(field: str) -> None:
    assert getattr(parse(**{field: None}), field) is None
    if field not in DOORS_OWN:
        assert options(**{field: None})[field] is None


@pytest.mark.parametrize("field", sorted(set(FIELDS) - NULLABLE - {"audio"}))
def test_null_counts_as_absent_elsewhere(field: str) -> None:
    assert parse(**{field: None}) == parse()


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("beam_size", 5.0, 5),
        ("best_of", 1.0, 1),
        ("temperature", 1, 1.0),
        ("suppress_tokens", [220.0, -1], [220, -1]),
        ("clip_timestamps", [0, 5], [0.0, 5.0]),
    ],
)
def test_json_has_one_kind_of_number(field: str, given: Any, read: Any) -> None:
    value = getattr(parse(**{field: given}), field)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("beam_size", "5", 5),
        ("beam_size", " 1e+01 ", 10),
        ("beam_size", "3.0", 3),
        ("beam_size", "null", None),
        ("beam_size", "None", None),
        ("temperature", "0.2", 0.2),
        ("temperature", "+.5", 0.5),
        ("logprob_threshold", "-1", -1.0),
        ("logprob_threshold", "none", None),
        ("word_timestamps", "true", True),
        ("word_timestamps", "False", False),
        ("word_timestamps", "1", True),
        ("word_timestamps", 0, False),
        ("word_timestamps", 1.0, True),
        ("condition_on_previous_text", "off", False),
        ("task", " Translate ", "translate"),
        ("clip_timestamps", "[0, 10.5]", [0.0, 10.5]),
        ("clip_timestamps", ["0", "10.5"], [0.0, 10.5]),
        ("clip_timestamps", 5, [5.0]),
        ("suppress_tokens", "[-1, 220]", [-1, 220]),
        ("suppress_tokens", ["-1", 220.0], [-1, 220]),
        ("suppress_tokens", -1, [-1]),
    ],
)
def test_text_is_read_as_the_value_that_it_can_only_mean(
    field: str, given: Any, read: Any
) -> None:
    value = getattr(parse(**{field: given}), field)
    assert value == read
    assert type(value) is type(read)


TEXTS = {
    "language",
    "initial_prompt",
    "prepend_punctuations",
    "append_punctuations",
    "suppress_tokens",
    "clip_timestamps",
    "audio",
    "audio_base64",
    "model",
}


@pytest.mark.parametrize("field", sorted(set(FIELDS) - TEXTS - {"audio_headers"}))
def test_a_number_or_choice_that_was_left_blank_is_absent(field: str) -> None:
    assert parse(**{field: ""}) == parse(**{field: " "}) == parse()


@pytest.mark.parametrize(
    "field", sorted(set(FIELDS) - TEXTS - NULLABLE - {"audio_headers"})
)
def test_null_in_words_counts_as_absent_where_null_does(field: str) -> None:
    assert parse(**{field: "null"}) == parse()


@pytest.mark.parametrize("field", ["suppress_tokens", "clip_timestamps"])
@pytest.mark.parametrize("null", [None, "null", "None"])
def test_null_in_place_of_a_list_counts_as_absent(field: str, null: str | None) -> None:
    assert parse(**{field: null}) == parse()


def test_a_text_stays_what_it_is() -> None:
    request = parse(initial_prompt="5", append_punctuations="", model="1")
    assert request.initial_prompt == "5"
    assert request.append_punctuations == ""
    assert parse(model=" ").model is None
    assert parse(initial_prompt="null").initial_prompt == "null"


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_blank_prompt_is_none(prompt: str) -> None:
    assert parse(initial_prompt=prompt).whisper_options()["initial_prompt"] is None


def test_lists_have_a_longest_length() -> None:
    assert len(parse(clip_timestamps=[1.0] * 10_000).clip_timestamps) == 10_000
    for clips in ([1.0] * 10_001, ",".join("1" * 10_001), "1," * 1_000_000):
        assert refusal_of(clip_timestamps=clips).startswith("Invalid clip_timestamps")
    assert refusal_of(suppress_tokens=[1] * 52_001).startswith("Invalid suppress_tok")


@pytest.mark.parametrize(
    ("given", "tokens", "text"),
    [
        ("-1", [-1], "-1"),
        ("-1,220, 50256", [-1, 220, 50256], "-1,220,50256"),
        ([-1, 220], [-1, 220], "-1,220"),
        ("", [], ""),
        ("  ", [], ""),
        ([], [], ""),
    ],
)
def test_suppress_tokens_are_text_or_a_list_as_in_whisper(
    given: Any, tokens: list[int], text: str
) -> None:
    request = parse(suppress_tokens=given)
    assert request.suppress_tokens == tokens
    assert request.whisper_options()["suppress_tokens"] == text


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("0", [0.0]),
        ("0,10.5, 20", [0.0, 10.5, 20.0]),
        ([1, 2.5], [1.0, 2.5]),
        ("", []),
        ([], []),
    ],
)
def test_clip_timestamps_are_text_or_a_list_as_in_whisper(
    given: Any, seconds: list[float]
) -> None:
    assert options(clip_timestamps=given)["clip_timestamps"] == seconds


@pytest.mark.parametrize("temperature", [0, 0.1, 0.5, 0.95, 1])
@pytest.mark.parametrize("increment", [0.01, 0.1, 0.2, 0.3, 1])
def test_the_ladder_of_temperatures_is_the_command_lines(
    temperature: float, increment: float
) -> None:
    ladder = options(
        temperature=temperature, temperature_increment_on_fallback=increment
    )["temperature"]
    assert ladder == cli_ladder(temperature, increment)
    assert {type(step) for step in ladder} == {float}


@pytest.mark.parametrize("increment", [None, 0, 0.0])
def test_without_an_increment_there_is_one_temperature(increment: float | None) -> None:
    fields = {"temperature": 0.3, "temperature_increment_on_fallback": increment}
    assert options(**fields)["temperature"] == 0.3


@pytest.mark.parametrize(
    ("given", "code"), [("pt", "pt"), ("Portuguese", "pt"), ("YUE", "yue")]
)
def test_a_language_is_given_by_code_or_name_and_passed_on_as_code(
    given: str, code: str
) -> None:
    request = parse(language=given)
    assert request.language_code == request.whisper_options()["language"] == code


def test_whisper_gets_none_of_the_doors_own_fields() -> None:
    assert set(options()) == set(FIELDS) - DOORS_OWN


def fits(name: str, **fields: Any) -> None:
    model = catalog.MODELS[name]
    limits = ModelLimits.of(model)
    check_fits_model(parse(**fields), name, limits, ["tiny", "base"])


@pytest.mark.parametrize(
    ("model", "fields", "text"),
    [
        (
            "base.en",
            {"language": "pt"},
            "Invalid language: model 'base.en' knows English only",
        ),
        (
            "base.en",
            {"task": "translate"},
            "Invalid task: model 'base.en' knows English only and cannot translate",
        ),
        (
            "base.en",
            {"language": "en", "task": "translate"},
            "Invalid task: model 'base.en' knows English only and cannot translate",
        ),
        (
            "turbo",
            {"task": "translate"},
            (
                "Invalid task: model 'turbo' was not trained to translate."
                " Models that translate: tiny, base"
            ),
        ),
        (
            "base",
            {"language": "Cantonese"},
            "Invalid language: model 'base' does not know 'yue'",
        ),
        (
            "large-v2",
            {"language": "yue"},
            "Invalid language: model 'large-v2' does not know 'yue'",
        ),
        (
            "base",
            {"suppress_tokens": [-1, 51865]},
            "Invalid suppress_tokens: model 'base' has token ids up to 51864",
        ),
        (
            "base.en",
            {"suppress_tokens": "51864"},
            "Invalid suppress_tokens: model 'base.en' has token ids up to 51863",
        ),
        (
            "base",
            {"suppress_tokens": [-1, 50257]},
            (
                "Invalid suppress_tokens: 50257 is the end of text of model 'base',"
                " without which no window ends"
            ),
        ),
        (
            "base.en",
            {"suppress_tokens": "50256"},
            (
                "Invalid suppress_tokens: 50256 is the end of text of model 'base.en',"
                " without which no window ends"
            ),
        ),
        (
            "large-v3",
            {"suppress_tokens": list(range(50365, 51866))},
            (
                "Invalid suppress_tokens: model 'large-v3' begins each window with one of"
                " the timestamps 50365 to 50415; leave one of them"
            ),
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    model: str, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        fits(model, **fields)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("base.en", {}),
        ("base.en", {"language": "English"}),
        ("base.en", {"suppress_tokens": [51863, 50257]}),
        ("base", {"suppress_tokens": [50256, *range(50365, 51865)]}),
        ("base", {"language": "pt", "task": "translate"}),
        ("base", {"language": "su"}),
        ("base", {"suppress_tokens": [51864]}),
        ("large-v3", {"language": "yue"}),
        ("turbo", {"language": "yue", "suppress_tokens": [51865]}),
    ],
)
def test_what_a_model_can_do_is_accepted(model: str, fields: dict[str, Any]) -> None:
    fits(model, **fields)


def test_the_tokens_that_no_window_can_do_without_are_whispers() -> None:
    for model in catalog.MODELS.values():
        tokenizer = get_tokenizer(model.multilingual, num_languages=model.num_languages)
        limits = ModelLimits.of(model)
        assert limits.end_of_text == tokenizer.eot
        assert limits.first_timestamp == tokenizer.timestamp_begin


def nullable(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


GROUP = st.integers(1, 10)


SECONDS = st.lists(st.floats(0, 1e6), max_size=5)


TOKEN_IDS = st.lists(st.integers(-1, 51864), max_size=5)


def joined(numbers: list[Any]) -> str:
    return ",".join(map(str, numbers))


@st.composite
def valid_fields(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"audio": st.just(URL)},
            optional={
                "model": nullable(PLAIN_TEXT),
                "language": nullable(
                    st.sampled_from([*catalog.LANGUAGES, *catalog.LANGUAGE_CODES])
                ),
                "temperature": st.floats(0, 1),
                "beam_size": nullable(GROUP | GROUP.map(float)),
                "word_timestamps": st.booleans(),
                "task": st.sampled_from(["transcribe", "translate"]),
                "temperature_increment_on_fallback": nullable(
                    st.just(0) | st.floats(0.01, 1)
                ),
                "best_of": nullable(GROUP | GROUP.map(float)),
                "patience": nullable(st.floats(0.6, 10)),
                "length_penalty": nullable(st.floats(0, 1)),
                "suppress_tokens": TOKEN_IDS | TOKEN_IDS.map(joined),
                "initial_prompt": nullable(PLAIN_TEXT),
                "carry_initial_prompt": st.booleans(),
                "condition_on_previous_text": st.booleans(),
                "compression_ratio_threshold": nullable(FINITE),
                "logprob_threshold": nullable(FINITE),
                "no_speech_threshold": nullable(FINITE),
                "hallucination_silence_threshold": nullable(st.floats(0.01, 1e9)),
                "clip_timestamps": SECONDS | SECONDS.map(joined),
                "prepend_punctuations": PLAIN_TEXT,
                "append_punctuations": PLAIN_TEXT,
            },
        )
    )
    if fields.get("beam_size", 5) is None:
        fields.pop("patience", None)
    if not fields.get("word_timestamps"):
        fields.pop("hallucination_silence_threshold", None)
    return fields


TOKENIZER = get_tokenizer(multilingual=True)


@settings(max_examples=200, deadline=None)
@given(valid_fields())
def test_whisper_takes_the_options_of_any_valid_request(fields: dict[str, Any]) -> None:
    options = parse_request(fields).whisper_options()
    rewritten = {"language", "temperature", "suppress_tokens", "clip_timestamps"}
    if not (fields.get("initial_prompt") or "").strip():
        rewritten.add("initial_prompt")
    for name in fields.keys() & options.keys() - rewritten:
        assert options[name] == fields[name]
    of_transcribe = inspect.signature(whisper.transcribe).parameters
    of_decoding = {
        name: value for name, value in options.items() if name not in of_transcribe
    }
    ladder = options["temperature"]
    for temperature in ladder if isinstance(ladder, tuple) else [ladder]:
        # As in `decode_with_fallback` of `whisper.transcribe`.
        dropped = {"beam_size", "patience"} if temperature > 0 else {"best_of"}
        kept = {name: of_decoding[name] for name in of_decoding.keys() - dropped}
        step = DecodingOptions(**kept, temperature=temperature)
        DecodingTask._verify_options(None, step)
        if step.beam_size is not None:
            BeamSearchDecoder(step.beam_size, TOKENIZER.eot, None, step.patience)
        if step.suppress_tokens:
            task = SimpleNamespace(options=step, tokenizer=TOKENIZER)
            suppressed = set(DecodingTask._get_suppress_tokens(task))
            asked = {int(token) for token in step.suppress_tokens.split(",")}
            assert asked - {-1} <= suppressed


def test_special_tokens_in_a_prompt_are_refused_where_the_tokenizer_would_raise() -> (
    None
):
    special = list(get_tokenizer(True, num_languages=100).special_tokens)
    assert len(special) > 1600
    for token in special:
        with pytest.raises(InvalidRequestError, match="without special tokens"):
            parse_request({"audio": "x", "initial_prompt": f"so {token} much"})
    assert parse_request({"audio": "x", "initial_prompt": "a <|b c|> <||> | <d>"})
