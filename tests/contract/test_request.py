"""What a request may hold, and how a broken rule is told."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import (
    TranscriptionOptions,
)
from deployments.contract.request import (
    TranscriptionRequest,
    parse_options,
    parse_request,
)
from tests.support.contract import (
    FIELDS,
    INF,
    NAN,
    URL,
    parse,
    refusal,
    refusal_of,
)

INVALID_AUDIO = "Invalid 'audio' parameter: must be a non-empty string URL"


MISSING_AUDIO = "Missing required parameter: 'audio' (URL to audio file)"


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
        "audio, audio_base64, audio_headers, audio_track, audio_channel, model, language,"
        " temperature, beam_size, word_timestamps, task,"
        " temperature_increment_on_fallback, best_of,"
        " patience, length_penalty, suppress_tokens, initial_prompt, carry_initial_prompt,"
        " condition_on_previous_text, compression_ratio_threshold, logprob_threshold,"
        " no_speech_threshold, hallucination_silence_threshold, clip_timestamps,"
        " chunking_strategy, prepend_punctuations, append_punctuations"
    )


@pytest.mark.parametrize(
    ("given", "track"),
    [
        (1, 1),
        (1.0, 1),
        ("1", 1),
        (" por ", "por"),
        ("pt-BR", "pt-BR"),
        ("zh_Hant", "zh_Hant"),
        ("1.0", 1),
        ("portugu\xeas", "portugu\xeas"),
        ("Brazilian Portuguese", "Brazilian Portuguese"),
        ("tlh", "tlh"),
        ("", None),
        ("null", None),
        ("None", None),
        (None, None),
    ],
)
def test_an_audio_track_is_a_number_or_a_language(given: Any, track: Any) -> None:
    assert parse(audio_track=given).audio_track == track


@pytest.mark.parametrize(
    "given", [-1, "-1", 1.5, True, [1], "p", "two words", "a\ud800", "1" * 400, 1 << 31]
)
def test_anything_else_is_no_audio_track(given: Any) -> None:
    text = refusal_of(audio_track=given)
    assert text.startswith("Invalid audio_track: must be the number of an audio track")


@pytest.mark.parametrize("given", [-1, "left", 0.5, True, 1 << 31])
def test_a_channel_is_a_number(given: Any) -> None:
    assert parse(audio_channel=1.0).audio_channel == 1
    text = refusal_of(audio_channel=given)
    assert text.startswith("Invalid audio_channel: must be the number of a channel")


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


CLIPS = (
    "must be seconds (start,end,start,...), as a list or a comma-separated string of at"
    " most 10,000"
)


@pytest.mark.parametrize(
    ("field", "rule", "values"),
    [
        (
            "temperature",
            "must be between 0 and 1",
            [-0.1, 1.1, "1.1", "0,5", "nan", "1e400", True, NAN, INF, [0.0], 10**400],
        ),
        (
            "beam_size",
            "must be an integer between 1 and 10",
            [0, 11, 2.5, "0", "2.5", "five", True, NAN, INF, -(2**70)],
        ),
        (
            "best_of",
            "must be an integer between 1 and 10, or null",
            [0, 11, 2.5, "x", "0x5", False, NAN],
        ),
        (
            "temperature_increment_on_fallback",
            "must be between 0 and 1, or null for no fallback",
            [-0.2, 1.2, "1.2", True, NAN, INF],
        ),
        (
            "patience",
            "must be greater than 0, or null",
            [0, -1, True, "0", "1_0", NAN, INF, 10**400],
        ),
        (
            "length_penalty",
            "must be between 0 and 1, or null",
            [-0.1, 1.5, True, "1.5", NAN],
        ),
        (
            "hallucination_silence_threshold",
            "must be at least 0.01, or null; needs word_timestamps",
            [0, -1, 0.009, True, "0", NAN],
        ),
        ("compression_ratio_threshold", NUMBER, ["much", True, NAN, INF, -INF]),
        ("logprob_threshold", NUMBER, ["-", "inf", False, NAN, INF, -INF]),
        ("no_speech_threshold", NUMBER, ["0.6.1", False, NAN, INF, -INF]),
        ("word_timestamps", BOOL, [2, -1, 0.5, NAN, "truth", "2", [True]]),
        ("carry_initial_prompt", BOOL, [2, "maybe"]),
        ("condition_on_previous_text", BOOL, [2, "maybe"]),
        (
            "task",
            "must be 'transcribe' or 'translate'",
            ["lang_id", "transcribe it", 5],
        ),
        (
            "language",
            "must be a language code, tag or name, or null to detect",
            ["x", "en;q=0.9", 5, True, ["en"], "\ud800"],
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
            [
                True,
                [1.5],
                ["a"],
                [True],
                [-2],
                [None],
                "a",
                "1,,2",
                "1.5",
                "nan",
                "[1",
                "{}",
            ],
        ),
        (
            "clip_timestamps",
            CLIPS,
            [
                True,
                ["a"],
                [True],
                [-1.0],
                [NAN],
                [None],
                "a",
                "0,",
                "inf",
                "-1",
                "[NaN]",
            ],
        ),
        (
            "prepend_punctuations",
            "must be a string of punctuation marks",
            [5, "\ud800"],
        ),
        ("append_punctuations", "must be a string of punctuation marks", [5, "\udc00"]),
        (
            "audio_base64",
            "must be a base64 string or a data: URI of at most 32 MiB decoded",
            [5, True, ["AAAA"]],
        ),
        (
            "audio_headers",
            "must be an object of strings: HTTP headers for the download of 'audio'",
            [5, "A: b", ["A: b"], {"A": 5}, {"A": None}, {"A": ["b"]}],
        ),
    ],
)
def test_a_broken_rule_is_told_by_field_and_rule(
    field: str, rule: str, values: list[Any]
) -> None:
    for value in values:
        payload = {"audio": URL} if field != "audio_base64" else {}
        assert refusal(payload | {field: value}) == f"Invalid {field}: {rule}", value


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(parse(), "beam_size", 3)  # noqa: B010 - as assignment, mypy refuses it


def test_an_unknown_model_is_told_with_the_valid_ones() -> None:
    args = AppArgs(models=[ModelArgs(name="tiny"), ModelArgs(name="base")])
    with pytest.raises(InvalidRequestError) as caught:
        args.model("huge")
    assert str(caught.value) == "Invalid model: 'huge'. Valid models: tiny, base"
    with pytest.raises(InvalidRequestError, match=f"Invalid model: '{'x' * 57}..."):
        args.model("x" * 100)


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


def test_options_are_validated_without_audio() -> None:
    assert parse_options({"beam_size": 3}).beam_size == 3
    with pytest.raises(InvalidRequestError) as caught:
        parse_options({"beam_size": 11})
    assert str(caught.value) == "Invalid beam_size: must be an integer between 1 and 10"
    with pytest.raises(InvalidRequestError, match="Unknown parameter: 'audio'"):
        parse_options({"audio": URL})


def test_the_options_of_a_request_leave_its_audio_behind() -> None:
    request = parse_request({"audio_base64": "AAAA", "model": "base", "beam_size": 3})
    assert request.options == TranscriptionOptions(beam_size=3)
    assert type(request.options) is TranscriptionOptions


def test_of_several_broken_rules_the_one_of_the_first_field_is_told() -> None:
    assert refusal({"beam_size": 0, "audio": 5}) == INVALID_AUDIO
