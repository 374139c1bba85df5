import argparse
import base64
import inspect
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import whisper
from hypothesis import example, given, settings
from hypothesis import strategies as st
from whisper.decoding import (
    BeamSearchDecoder,
    DecodingOptions,
    DecodingTask,
)
from whisper.tokenizer import get_tokenizer
from whisper.transcribe import cli

from deployments import catalog
from deployments.contract import schema
from deployments.contract.errors import InvalidRequestError
from deployments.contract.schema import (
    Segment,
    Timings,
    TranscriptionRequest,
    TranscriptionResponse,
    Word,
    check_fits_model,
    parse_request,
    segments_of,
    unknown_model,
    words_of,
)

URL = "https://example.com/speech.mp3"
FIELDS = list(TranscriptionRequest.model_fields)
INVALID_AUDIO = "Invalid 'audio' parameter: must be a non-empty string URL"
MISSING_AUDIO = "Missing required parameter: 'audio' (URL to audio file)"
INVALID_BASE64 = (
    "Invalid audio_base64: must be a base64 string of at most 32 MiB decoded"
)

# The request table of DESIGN.md.
DEFAULTS = {
    "audio": None,
    "audio_base64": None,
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
    "prepend_punctuations": "\"'“¿([{-",
    "append_punctuations": "\"'.。,，!！?？:：”)]}、",
}
NULLABLE = {
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
}
DOORS_OWN = {"audio", "audio_base64", "model", "temperature_increment_on_fallback"}


def parse(**fields: Any) -> TranscriptionRequest:
    return parse_request({"audio": URL} | fields)


def options(**fields: Any) -> dict[str, Any]:
    return parse(**fields).whisper_options()


def refusal(payload: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(payload)
    return str(caught.value)


def refusal_of(**fields: Any) -> str:
    return refusal({"audio": URL} | fields)


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


def test_the_defaults_are_those_of_the_design() -> None:
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
    assert theirs == set(FIELDS) - {"audio_base64"}


def test_a_request_may_stand_inside_input() -> None:
    assert parse_request({"input": {"audio": URL, "beam_size": 3}}) == parse(
        beam_size=3
    )


@pytest.mark.parametrize(
    "payload",
    [None, [], "text", 5, {"input": None}, {"input": [{"audio": URL}]}, {"input": "x"}],
)
def test_a_request_that_is_no_object_is_refused(payload: Any) -> None:
    assert refusal(payload) == "The request must be a JSON object"


def test_a_door_neither_nests_nor_mixes_input_with_fields() -> None:
    for payload in (
        {"input": {"input": {"audio": URL}}},
        {"input": {"audio": URL}, "audio": URL},
    ):
        assert refusal(payload).startswith("Unknown parameter: 'input'.")


def test_an_unknown_key_is_refused_by_name_with_the_valid_ones() -> None:
    assert (
        refusal_of(beam_sise=3) == "Unknown parameter: 'beam_sise'. Valid parameters: "
        "audio, audio_base64, model, language, temperature, beam_size, word_timestamps,"
        " task, temperature_increment_on_fallback, best_of, patience, length_penalty,"
        " suppress_tokens, initial_prompt, carry_initial_prompt,"
        " condition_on_previous_text, compression_ratio_threshold, logprob_threshold,"
        " no_speech_threshold, hallucination_silence_threshold, clip_timestamps,"
        " prepend_punctuations, append_punctuations"
    )


def test_an_unknown_key_is_refused_even_if_its_value_is_null() -> None:
    assert refusal_of(stream=None).startswith("Unknown parameter: 'stream'.")


@pytest.mark.parametrize(
    ("key", "quoted"),
    [
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 57 + "..."),
        ("a\ud800b", "a?b"),
    ],
)
def test_an_unknown_key_is_quoted_fit_to_be_read(key: str, quoted: str) -> None:
    assert refusal({key: 1}).startswith(f"Unknown parameter: '{quoted}'. Valid")


@pytest.mark.parametrize(
    "payload",
    [{}, {"audio": None}, {"input": {}}, {"audio": None, "audio_base64": None}],
)
def test_a_request_without_audio_is_refused(payload: Any) -> None:
    assert refusal(payload) == MISSING_AUDIO


@pytest.mark.parametrize("audio", ["", "  \n", 5, True, [URL], {"url": URL}, "\udfff"])
def test_audio_that_is_no_url_text_is_refused(audio: Any) -> None:
    assert refusal({"audio": audio}) == INVALID_AUDIO


@pytest.mark.parametrize("file", ["", "AAAA"])
def test_audio_is_given_in_one_way_only(file: str) -> None:
    assert (
        refusal_of(audio_base64=file)
        == "Give either 'audio' or 'audio_base64', not both"
    )


NUMBER = "must be a number, or null to switch the rule off"
BOOL = "must be true or false"
TOKENS = (
    "must be token ids, as a list or a comma-separated string;"
    " -1 stands for the usual non-speech symbols"
)
CLIPS = "must be seconds (start,end,start,...), as a list or a comma-separated string"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("field", "rule", "values"),
    [
        (
            "temperature",
            "must be between 0 and 1",
            [-0.1, 1.1, "0", True, NAN, INF, [0.0], 10**400],
        ),
        (
            "beam_size",
            "must be an integer between 1 and 10",
            [0, 11, 2.5, "5", True, NAN, INF, -(2**70)],
        ),
        (
            "best_of",
            "must be an integer between 1 and 10, or null",
            [0, 11, 2.5, "5", False, NAN],
        ),
        (
            "temperature_increment_on_fallback",
            "must be between 0 and 1, or null for no fallback",
            [-0.2, 1.2, "0.2", True, NAN, INF],
        ),
        (
            "patience",
            "must be greater than 0, or null",
            [0, -1, True, "1", NAN, INF, 10**400],
        ),
        (
            "length_penalty",
            "must be between 0 and 1, or null",
            [-0.1, 1.5, True, "1", NAN],
        ),
        (
            "hallucination_silence_threshold",
            "must be greater than 0, or null; needs word_timestamps",
            [0, -1, True, "1", NAN],
        ),
        ("compression_ratio_threshold", NUMBER, ["2.4", True, NAN, INF, -INF]),
        ("logprob_threshold", NUMBER, ["-1", False, NAN, INF, -INF]),
        ("no_speech_threshold", NUMBER, ["0.6", False, NAN, INF, -INF]),
        ("word_timestamps", BOOL, [0, 1, "true", "yes", [True]]),
        ("carry_initial_prompt", BOOL, [0, 1, "true"]),
        ("condition_on_previous_text", BOOL, [0, 1, "true"]),
        (
            "task",
            "must be 'transcribe' or 'translate'",
            ["Transcribe", "lang_id", "", 5],
        ),
        (
            "language",
            "must be a language code or English name, or null to detect",
            ["klingon", "", "en-US", 5, True, ["en"], "\ud800"],
        ),
        (
            "model",
            "must be the name of a served model; null: the default one",
            [5, True, ["base"], "\ud800"],
        ),
        (
            "initial_prompt",
            (
                "must be a string of at most 100,000 characters, without special"
                " tokens (<|en|>), or null"
            ),
            [5, True, ["Hello"], "a lone \ud800"],
        ),
        (
            "suppress_tokens",
            TOKENS,
            [5, True, [1.5], ["1"], [True], [-2], [None], "a", "1,,2", "1.5", "nan"],
        ),
        (
            "clip_timestamps",
            CLIPS,
            [5, True, ["1"], [True], [-1.0], [NAN], [None], "a", "0,", "inf", "-1"],
        ),
        (
            "prepend_punctuations",
            "must be a string of punctuation marks",
            [5, "\ud800"],
        ),
        ("append_punctuations", "must be a string of punctuation marks", [5, "\udc00"]),
        (
            "audio_base64",
            "must be a base64 string of at most 32 MiB decoded",
            [5, True, ["AAAA"]],
        ),
    ],
)
def test_a_broken_rule_is_told_by_field_and_rule(
    field: str, rule: str, values: list[Any]
) -> None:
    for value in values:
        payload = {"audio": URL} if field != "audio_base64" else {}
        assert refusal(payload | {field: value}) == f"Invalid {field}: {rule}", value


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
            "Invalid patience: too large for this beam_size",
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


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(parse(), "beam_size", 3)  # noqa: B010 - as assignment, mypy refuses it


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_file_inside_the_request_is_read(size: int) -> None:
    data = bytes(i % 256 for i in range(size))
    for encoded in (base64.b64encode(data), base64.encodebytes(data)):
        request = parse_request({"audio_base64": encoded.decode()})
        assert request.audio_bytes() == data
    windows_lines = base64.encodebytes(data).decode().replace("\n", "\r\n")
    assert parse_request({"audio_base64": windows_lines}).audio_bytes() == data


@pytest.mark.parametrize(
    "text",
    ["", " \n", "AAA", "AA=A", "A-_A", "AAAA!", "data:audio/wav;base64,AAAA", "äöüß"],
)
def test_text_that_is_no_base64_is_refused(text: str) -> None:
    request = parse_request({"audio_base64": text})
    with pytest.raises(InvalidRequestError) as caught:
        request.audio_bytes()
    assert str(caught.value) == INVALID_BASE64


def test_a_file_inside_the_request_may_hold_32_mib() -> None:
    assert schema.MAX_BASE64_AUDIO_BYTES == 32 * 1024 * 1024


def test_a_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_BASE64_AUDIO_BYTES", 3000)

    def decoded(size: int) -> bytes:
        text = base64.encodebytes(bytes(size)).decode()
        return parse_request({"audio_base64": text}).audio_bytes()

    assert decoded(3000) == bytes(3000)
    for size in (3001, 30_000):
        with pytest.raises(InvalidRequestError, match=INVALID_BASE64):
            decoded(size)


def test_an_unknown_model_is_told_with_the_valid_ones() -> None:
    error = unknown_model("huge", ["tiny", "base"])
    assert str(error) == "Invalid model: 'huge'. Valid models: tiny, base"
    assert isinstance(error, InvalidRequestError)
    assert str(unknown_model("x" * 100, [])).startswith(f"Invalid model: '{'x' * 57}..")


def fits(name: str, **fields: Any) -> None:
    model = catalog.MODELS[name]
    check_fits_model(
        parse(**fields),
        model=name,
        multilingual=model.multilingual,
        num_languages=model.num_languages,
        n_vocab=model.n_vocab,
    )


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
        ("base.en", {"suppress_tokens": [51863]}),
        ("base", {"language": "pt", "task": "translate"}),
        ("base", {"language": "su"}),
        ("base", {"suppress_tokens": [51864]}),
        ("large-v3", {"language": "yue"}),
        ("turbo", {"language": "yue", "suppress_tokens": [51865]}),
    ],
)
def test_what_a_model_can_do_is_accepted(model: str, fields: dict[str, Any]) -> None:
    fits(model, **fields)


TEXT = st.text() | st.sampled_from(["\ud800", "x" * 3000, URL, "en", "0,5", "1e308"])
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 5, 0.2, 1e308, -1e308, 10**400, 2**63])
)
# Python doors take more than JSON can write: NaN, lone surrogates, huge numbers.
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4)
    ),
    max_leaves=12,
)
PLAUSIBLE = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)


@settings(max_examples=400, deadline=None)
@given(
    JSON
    | PLAUSIBLE
    | PLAUSIBLE.map(lambda fields: fields | {"audio": URL})
    | PLAUSIBLE.map(lambda fields: {"input": fields})
)
@example({"audio": URL, "patience": 1e308})
@example({"audio": URL, "clip_timestamps": "9" * 400})
@example({"\ud800" * 100: 1})
def test_any_json_is_a_request_or_is_refused_in_a_short_text(payload: Any) -> None:
    try:
        request = parse_request(payload)
    except InvalidRequestError as error:
        assert 0 < len(str(error).encode()) < 2000
    else:
        assert isinstance(request, TranscriptionRequest)


def nullable(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


FINITE = st.floats(allow_nan=False, allow_infinity=False)
GROUP = st.integers(1, 10)
SECONDS = st.lists(st.floats(0, 1e6), max_size=5)
TOKEN_IDS = st.lists(st.integers(-1, 51864), max_size=5)
PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


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
                "patience": nullable(st.floats(0.6, 1e300)),
                "length_penalty": nullable(st.floats(0, 1)),
                "suppress_tokens": TOKEN_IDS | TOKEN_IDS.map(joined),
                "initial_prompt": nullable(PLAIN_TEXT),
                "carry_initial_prompt": st.booleans(),
                "condition_on_previous_text": st.booleans(),
                "compression_ratio_threshold": nullable(FINITE),
                "logprob_threshold": nullable(FINITE),
                "no_speech_threshold": nullable(FINITE),
                "hallucination_silence_threshold": nullable(
                    st.floats(0, 1e9, exclude_min=True)
                ),
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


def test_the_fields_of_a_response_are_those_of_the_design() -> None:
    assert list(Segment.model_fields) == [
        "id",
        "seek",
        "start",
        "end",
        "text",
        "tokens",
        "temperature",
        "avg_logprob",
        "compression_ratio",
        "no_speech_prob",
    ]
    assert list(Word.model_fields) == ["word", "start", "end", "probability"]
    assert list(Timings.model_fields) == [
        "download",
        "decode",
        "model_start",
        "queue",
        "transcribe",
        "batch",
    ]
    assert list(TranscriptionResponse.model_fields) == [
        "segments",
        "word_timestamps",
        "detected_language",
        "transcription",
        "device",
        "model",
        "duration",
        "timings",
        "request_id",
    ]


ODD_NUMBERS = FINITE | st.sampled_from([NAN, INF, -INF]) | st.integers(-5, 5)
ANY_WIDTH = st.sampled_from([float, np.float64, np.float32])
WHOLE_OF_ANY_WIDTH = st.sampled_from([int, np.int64, np.int32])


@st.composite
def odd_number(draw: st.DrawFn) -> Any:
    with np.errstate(over="ignore"):
        return draw(ANY_WIDTH)(draw(ODD_NUMBERS))


@st.composite
def time(draw: st.DrawFn) -> Any:
    return draw(ANY_WIDTH)(draw(st.floats(0, 1e5)))


@st.composite
def whole(draw: st.DrawFn) -> Any:
    return draw(WHOLE_OF_ANY_WIDTH)(draw(st.integers(0, 51864)))


WORDS = st.fixed_dictionaries(
    {"word": PLAIN_TEXT, "start": time(), "end": time(), "probability": odd_number()}
)
SEGMENTS = st.fixed_dictionaries(
    {
        "id": whole(),
        "seek": whole(),
        "start": time(),
        "end": time(),
        "text": PLAIN_TEXT,
        "tokens": st.lists(whole(), max_size=4),
        "temperature": time(),
        "avg_logprob": odd_number(),
        "compression_ratio": odd_number(),
        "no_speech_prob": odd_number(),
    },
    optional={"words": st.lists(WORDS, max_size=3)},
)


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


@settings(max_examples=100, deadline=None)
@given(st.lists(SEGMENTS, max_size=3))
def test_any_result_of_whisper_becomes_plain_json(
    segments: list[dict[str, Any]],
) -> None:
    result = {"segments": segments}
    response = TranscriptionResponse(
        segments=segments_of(result),
        word_timestamps=words_of(result),
        detected_language="en",
        transcription=" ".join(segment["text"] for segment in segments),
        device="cpu",
        model="base",
        duration=1.5,
        timings=Timings(),
        request_id="1",
    ).model_dump()
    assert plain(response)
    assert json.loads(json.dumps(response, allow_nan=False)) == response
    for segment, answered in zip(segments, response["segments"], strict=True):
        assert answered["text"] == segment["text"].strip()
        assert answered["tokens"] == segment["tokens"]
        for field in ("avg_logprob", "compression_ratio", "no_speech_prob"):
            finite = math.isfinite(segment[field])
            assert answered[field] == (segment[field] if finite else None)
    words = [word for segment in segments for word in segment.get("words", [])]
    assert [word["word"] for word in response["word_timestamps"]] == [
        word["word"].strip() for word in words
    ]
    assert [word["start"] for word in response["word_timestamps"]] == [
        word["start"] for word in words
    ]


def test_numbers_that_whisper_could_not_tell_are_null() -> None:
    word = Word.model_validate(
        {"word": " a", "start": 0, "end": 1, "probability": np.float32("nan")}
    )
    assert word.model_dump() == {
        "word": "a",
        "start": 0.0,
        "end": 1.0,
        "probability": None,
    }


def test_the_timings_a_response_does_not_know_are_zero() -> None:
    assert set(Timings().model_dump().values()) == {0.0}


def test_special_tokens_in_a_prompt_are_refused_where_the_tokenizer_would_raise() -> (
    None
):
    special = list(get_tokenizer(True, num_languages=100).special_tokens)
    assert len(special) > 1600
    for token in special:
        with pytest.raises(InvalidRequestError, match="without special tokens"):
            parse_request({"audio": "x", "initial_prompt": f"so {token} much"})
    assert parse_request({"audio": "x", "initial_prompt": "a <|b c|> <||> | <d>"})
