"""Fields of OpenAI's clients as the contract's request and the options of the answer."""

import logging
from typing import Any

import pytest

from deployments.api.openai.answer_options import AnswerOptions, Task
from deployments.api.openai.errors import body_of
from deployments.api.openai.request import OpenAIRequest, log_ignored, parse
from deployments.api.openai.subtitles import SubtitleOptions
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import parse_upload

URL = "https://example.com/speech.mp3"
ARGS = AppArgs(
    default_model="base",
    models=[ModelArgs(name=name) for name in ("base", "tiny.en", "turbo")],
    openai_models={"whisper-1": "turbo", "gpt-4o-mini-transcribe": "tiny.en"},
)


def parsed(
    task: Task = "transcribe", has_file: bool = True, /, **fields: Any
) -> OpenAIRequest:
    return parse(fields, task, ARGS, has_file)


def request_of(**fields: Any) -> dict[str, Any]:
    return parsed(**fields).request


def options_of(**fields: Any) -> AnswerOptions:
    return parsed(**fields).options


def refusal(
    task: Task = "transcribe", has_file: bool = True, /, **fields: Any
) -> dict[str, Any]:
    """The error that a client gets."""
    with pytest.raises(InvalidRequestError) as raised:
        parse(fields, task, ARGS, has_file)
    error: dict[str, Any] = body_of(raised.value)["error"]
    return error


def test_a_file_alone_is_transcribed_by_the_default_model() -> None:
    assert request_of() == {"model": "base", "task": "transcribe"}
    assert options_of().format == "json" and not options_of().stream


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("", "base"),
        ("tiny.en", "tiny.en"),
        ("openai/whisper-tiny.en", "tiny.en"),
        ("whisper-1", "turbo"),
        ("openai/whisper-1", "turbo"),
        ("Whisper-1", "turbo"),
        ("gpt-4o-mini-transcribe", "tiny.en"),
        ("gpt-4o-mini-transcribe-2025-12-15", "tiny.en"),
        ("gpt-4o-transcribe", "base"),
        ("gpt-4o-transcribe-diarize", "base"),
        ("gpt-transcribe", "base"),
        ("gpt-transcribe-2026-08-26", "base"),
        ("large-v3-turbo", "turbo"),
    ],
)
def test_names_of_openais_models_stand_for_served_ones(name: str, served: str) -> None:
    assert request_of(model=name)["model"] == served


@pytest.mark.parametrize(
    "name", ["whisper-2", "gpt-4o", "tts-1", "nova-2", "transcribe"]
)
def test_an_unknown_model_is_not_found(name: str) -> None:
    error = refusal(model=name)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert f"'{name}' does not exist. Valid models: base, " in error["message"]


@pytest.mark.parametrize(
    ("fields", "audio"),
    [
        ({"url": URL}, {"audio": URL}),
        ({"audio_url": URL}, {"audio": URL}),
        ({"audio_url": {"url": URL}}, {"audio": URL}),
        ({"audio": URL}, {"audio": URL}),
        ({"file": URL}, {"audio": URL}),
        ({"file": "UklGRg=="}, {"audio_base64": "UklGRg=="}),
        (
            {"file": "data:audio/wav;base64,UA=="},
            {"audio": "data:audio/wav;base64,UA=="},
        ),
        ({"audio_base64": "UklGRg=="}, {"audio_base64": "UklGRg=="}),
        ({"input_audio": {"data": "UA==", "format": "wav"}}, {"audio_base64": "UA=="}),
        ({"input_audio[data]": "UA=="}, {"audio_base64": "UA=="}),
        ({"url": URL, "file": "", "audio": None}, {"audio": URL}),
        (
            {"url": URL, "audio_headers": '{"Authorization": "Bearer x"}'},
            {"audio": URL, "audio_headers": '{"Authorization": "Bearer x"}'},
        ),
        (
            {"url": URL, "audio_headers[Authorization]": "Bearer x"},
            {"audio": URL, "audio_headers": {"Authorization": "Bearer x"}},
        ),
    ],
    ids=str,
)
def test_the_recording_may_be_a_url_or_text(
    fields: dict[str, Any], audio: dict[str, Any]
) -> None:
    expected = {"model": "base", "task": "transcribe", **audio}
    assert parsed("transcribe", False, **fields).request == expected


@pytest.mark.parametrize(
    ("file", "fields", "param", "code"),
    [
        (False, {}, "file", "missing_required_parameter"),
        (True, {"url": URL}, "url", "invalid_value"),
        (False, {"url": URL, "audio_base64": "UA=="}, "audio_base64", "invalid_value"),
        (False, {"url": 5}, "url", "invalid_value"),
        (False, {"audio_url": {"href": URL}}, "audio_url", "invalid_value"),
        (False, {"input_audio": "UA=="}, "input_audio", "invalid_value"),
        (False, {"url": URL, "audio_headers": "x"}, "audio_headers", "invalid_value"),
        (True, {"model": ["base", "turbo"]}, "model", "invalid_value"),
        (True, {"model": 1}, "model", "invalid_value"),
        (True, {"stream": "maybe"}, "stream", "invalid_value"),
        (True, {"response_format": "docx"}, "response_format", "unsupported_value"),
        (True, {"response_format": 5}, "response_format", "unsupported_value"),
        (True, {"language": "klingon"}, "language", "invalid_value"),
        (True, {"languages": ["klingon"]}, "languages", "invalid_value"),
        (True, {"prompt": "a <|en|>"}, "prompt", "invalid_value"),
        (
            True,
            {"prompt": "a", "initial_prompt": "b"},
            "initial_prompt",
            "invalid_value",
        ),
        (True, {"keywords": ["<b>"]}, "keywords", "invalid_value"),
        (True, {"temperature": "hot"}, "temperature", "invalid_value"),
        (True, {"temperature": "1.5"}, "temperature", "invalid_value"),
        (True, {"beam_size": "0"}, "beam_size", "invalid_value"),
        (True, {"task": "sing"}, "task", "invalid_value"),
        (True, {"model": "tiny.en", "language": "pt"}, "language", "invalid_value"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_as_the_client_named_it(
    file: bool, fields: dict[str, Any], param: str, code: str
) -> None:
    error = refusal("transcribe", file, **fields)
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="must be a JSON object"):
        parse(["url"], "transcribe", ARGS, False)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("en", "en"),
        ("pt-BR", "pt"),
        ("English", "en"),
        ("fil", "tl"),
        ("nb", "no"),
        ("auto", None),
        ("", None),
        (None, None),
    ],
)
def test_a_language_is_read_in_every_form(
    written: str | None, code: str | None
) -> None:
    request = request_of(language=written)
    assert parse_upload(request).options.language_code == code


def test_null_means_what_it_means_to_the_native_api() -> None:
    read = parsed(beam_size=None, prompt=None, temperature=None, unknown=None)
    options = parse_upload(read.request).options
    assert (options.beam_size, options.temperature) == (None, 0.0)
    assert not read.options.ignored


def test_of_several_languages_whisper_takes_none() -> None:
    assert request_of(**{"languages[]": "de"})["language"] == "de"
    several = parsed(languages=["de", "en"])
    assert "language" not in several.request
    assert several.options.warnings[0].startswith("languages: Whisper takes one")


def test_keywords_stand_in_front_of_the_prompt() -> None:
    given = parsed(keywords=["Kennedy", "Ted Sorensen"], prompt="A speech.")
    assert given.request["initial_prompt"] == "Kennedy, Ted Sorensen. A speech."
    assert given.options.warnings[0].startswith("keywords were put in front")
    assert request_of(prompt="A speech.")["initial_prompt"] == "A speech."
    assert "initial_prompt" not in request_of(prompt="")


@pytest.mark.parametrize(
    ("temperature", "request_fields"),
    [
        ("0", {"temperature": 0.0}),
        ("0.0", {"temperature": 0.0}),
        (0, {"temperature": 0}),
        ("", {}),
        ("null", {}),
        (
            "0.2",
            {"temperature": 0.2, "temperature_increment_on_fallback": None},
        ),
    ],
)
def test_the_ladder_of_temperatures_begins_at_zero_alone(
    temperature: Any, request_fields: dict[str, Any]
) -> None:
    expected = {"model": "base", "task": "transcribe"} | request_fields
    assert request_of(temperature=temperature) == expected


def test_a_ladder_from_another_temperature_may_be_asked_for() -> None:
    request = request_of(temperature="0.4", temperature_increment_on_fallback="0.2")
    assert request["temperature_increment_on_fallback"] == "0.2"


WORD, SEGMENT = frozenset({"word"}), frozenset({"segment"})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, SEGMENT),
        ({"timestamp_granularities": "word"}, WORD),
        ({"timestamp_granularities[]": "word"}, WORD),
        ({"timestamp_granularities[]": ["word", "segment"]}, WORD | SEGMENT),
        ({"timestamp_granularities": ["word", "segment"]}, WORD | SEGMENT),
        (
            {
                "timestamp_granularities[0]": "word",
                "timestamp_granularities[1]": "segment",
            },
            WORD | SEGMENT,
        ),
        ({"timestamp_granularities": "word,segment"}, WORD | SEGMENT),
        ({"timestamp_granularities": '["Word"]'}, WORD),
        ({"timestamp_granularities": ""}, SEGMENT),
        ({"word_timestamps": "true"}, WORD | SEGMENT),
    ],
    ids=str,
)
def test_granularities_are_read_in_all_spellings(
    fields: dict[str, Any], found: frozenset[str]
) -> None:
    given = parsed(response_format="verbose_json", **fields)
    assert given.options.granularities == found
    assert given.request.get("word_timestamps", False) in (("word" in found), "true")


def test_granularities_of_another_format_have_no_effect() -> None:
    given = parsed(**{"timestamp_granularities[]": "word"})
    assert "word_timestamps" not in given.request
    assert given.options.ignored == ("timestamp_granularities",)


def test_an_unknown_granularity_is_refused_where_it_would_have_an_effect() -> None:
    fields = {"timestamp_granularities": "char"}
    error = refusal(response_format="verbose_json", **fields)
    assert error["param"] == "timestamp_granularities"
    assert options_of(response_format="json", **fields).ignored


@pytest.mark.parametrize("written", ["true", "True", "1", 1, True])
def test_a_stream_is_asked_for_in_any_form(written: Any) -> None:
    assert options_of(stream=written).stream


@pytest.mark.parametrize("written", ["false", "0", "", None, False])
def test_no_stream_is_asked_for_in_any_form(written: Any) -> None:
    assert not options_of(stream=written).stream


@pytest.mark.parametrize("written", ["", "null", None, "JSON"])
def test_no_format_is_json(written: str | None) -> None:
    assert options_of(response_format=written).format == "json"


@pytest.mark.parametrize("written", ["SRT", " srt ", "srt"])
def test_a_format_is_read_in_any_case(written: str) -> None:
    assert options_of(response_format=written).format == "srt"


def test_options_of_subtitles_ask_for_words() -> None:
    fields = {"max_line_width": "42", "max_line_count": 2, "highlight_words": "true"}
    given = parsed(response_format="srt", **fields)
    expected = SubtitleOptions(
        max_line_width=42, max_line_count=2, highlight_words=True
    )
    assert given.options.subtitles == expected
    assert given.request["word_timestamps"] is True
    assert "word_timestamps" not in request_of(response_format="srt")
    elsewhere = parsed(response_format="text", **fields)
    assert "word_timestamps" not in elsewhere.request
    assert elsewhere.options.ignored == tuple(fields)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"max_line_count": 2}, "max_line_count has no effect without max_line_width"),
        (
            {"max_line_width": 9, "max_words_per_line": 2},
            "max_words_per_line has no effect with max_line_width",
        ),
    ],
)
def test_an_option_of_subtitles_without_effect_is_told(
    fields: dict[str, Any], warning: str
) -> None:
    assert options_of(response_format="vtt", **fields).warnings == (warning,)


@pytest.mark.parametrize("value", ["wide", "0", "-1", 1.5, "true", [1, 2]])
def test_a_wrong_option_of_subtitles_is_refused(value: Any) -> None:
    error = refusal(response_format="srt", max_line_width=value)
    assert error["param"] == "max_line_width"


def test_the_route_of_translations_knows_one_task() -> None:
    given = parsed("translate", task="transcribe", language="pt")
    assert given.request == {"model": "base", "task": "translate", "language": "pt"}
    assert (given.options.task, given.options.ignored) == ("translate", ("task",))
    assert options_of(task="Translate").task == "translate"


def test_a_model_that_cannot_translate_is_the_wrong_one() -> None:
    error = refusal("translate", model="turbo")
    assert error["param"] == "model"
    assert error["message"] == (
        "Invalid model: model 'turbo' was not trained to translate."
        " Models that translate: base"
    )


def test_fields_of_an_extra_body_are_fields() -> None:
    for fields in (
        {"extra_body[beam_size]": "3"},
        {"extra_body": {"beam_size": "3"}},
        {"beam_size": "3"},
    ):
        assert request_of(**fields)["beam_size"] == "3"
    assert options_of(extra_body={"extra_body": {"beam_size": 3}}).ignored == (
        "extra_body",
    )


def test_ignored_fields_are_logged_by_name_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = options_of(
        **{"vad_filter": "SECRET", "a\nb=c": "x", "c" * 99: "y"},
        **{f"field{number}": "z" for number in range(20)},
    )
    with caplog.at_level(logging.INFO, "deployments"):
        log_ignored(options, "mine")
    # The service that other tests share may still log what they left.
    lines = [record.getMessage() for record in caplog.records]
    [line] = [line for line in lines if "request_id=mine" in line]
    assert line.startswith(
        f"event=fields_ignored request_id=mine names=vad_filter,a?b?c,{'c' * 40},field0,"
    )
    assert line.endswith(",13-more") and "SECRET" not in line
    assert options.warnings[0].startswith(
        "Fields without effect here: vad_filter, a?b?c, "
    )


def test_an_ignored_field_without_a_name_is_told_too() -> None:
    options = options_of(**{"": "x"})
    assert options.ignored == ("?",)
    assert options.warnings == ("Fields without effect here: ?",)


def test_a_request_without_odd_fields_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "deployments"):
        log_ignored(options_of(language="en"), "mine")
    assert "request_id=mine" not in caplog.text
