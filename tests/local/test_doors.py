"""The doors of the local command, against the HTTP application itself. No Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import api
from deployments.config import AppArgs
from deployments.contract.errors import InvalidRequestError
from deployments.keys import Keys, new_key
from deployments.local.doors import DOORS, RequestFailed
from tests.support.handles import SEGMENT, Handle, events, transcript
from tests.support.http_server import served_app, served_file
from tests.support.routers import AUDIO, router

RECORDING = AUDIO / "jfk-phone.wav"
EACH_DOOR = pytest.mark.parametrize("door", DOORS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    spoken = events(SEGMENT, transcript(segments=[SEGMENT.segment]))
    with served_app(api.build(router(Handle(stream=[spoken])))) as url:
        yield url


def asked(url: str, door: str, audio: str, **fields: Any) -> str:
    request = DOORS[door](audio, fields)
    assert request.model(AppArgs()).name == "base"
    return request.ask(url)


@EACH_DOOR
def test_a_file_and_a_url_give_the_same_text(url: str, door: str) -> None:
    with served_file(RECORDING) as recording:
        answers = [asked(url, door, audio) for audio in (str(RECORDING), recording)]
    texts = [json.loads(answer) for answer in answers]
    name = {"native": "transcription", "openai": "text"}[door]
    assert [text[name] for text in texts] == ["hello", "hello"]


def test_formats_that_are_no_json_are_printed_as_they_are(url: str) -> None:
    subtitles = asked(url, "openai", str(RECORDING), response_format="srt")
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:01,000\nhello\n")


def test_a_list_is_sent_as_a_field_that_is_repeated(url: str) -> None:
    fields = {
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
    }
    answer = json.loads(asked(url, "openai", str(RECORDING), **fields))
    assert {"words", "segments"} <= answer.keys()


@pytest.mark.parametrize("by_url", [False, True])
def test_a_null_means_null_or_that_the_field_is_absent(by_url: bool) -> None:
    handle = Handle(stream=[events(transcript())])
    fields: dict[str, Any] = {"model": None, "initial_prompt": None}
    fields |= {"beam_size": None, "best_of": 3}
    fields |= {"audio_headers": {"x-a": "b"}} if by_url else {}
    with (
        served_app(api.build(router(handle))) as url,
        served_file(RECORDING) as recording,
    ):
        asked(url, "openai", recording if by_url else str(RECORDING), **fields)
    [(_, options, *_)] = [given for given in handle.arguments if given]
    assert (options.initial_prompt, options.beam_size) == (None, None)
    assert options.best_of == 3


def test_values_are_sent_as_json_writes_them() -> None:
    handle = Handle(stream=[events(transcript())])
    fields = {
        "suppress_tokens": [],
        "carry_initial_prompt": True,
        'a"\r\nb': {"c": "d"},
    }
    with served_app(api.build(router(handle))) as url:
        answer = json.loads(asked(url, "openai", str(RECORDING), **fields))
    [(_, options, *_)] = [given for given in handle.arguments if given]
    assert (options.suppress_tokens, options.carry_initial_prompt) == ([], True)
    # The field that nobody knows comes as one field, and its name does not break the form.
    assert answer["warnings"] == ["Fields without effect here: a?22?0D?0Ab"]


def test_a_file_is_uploaded_with_the_fields_of_the_native_request() -> None:
    handle = Handle(stream=[events(transcript())])
    fields: dict[str, Any] = {
        "beam_size": None,
        "temperature": 0.4,
        "suppress_tokens": [-1, 5],
        "clip_timestamps": [],
        "model": None,
    }
    with served_app(api.build(router(handle))) as url:
        asked(url, "native", str(RECORDING), **fields)
    [(_, options, *_)] = [given for given in handle.arguments if given]
    assert (options.beam_size, options.temperature) == (None, 0.4)
    assert (options.suppress_tokens, options.clip_timestamps) == ([-1, 5], [])


def test_headers_of_a_download_are_refused_where_a_file_is_uploaded() -> None:
    door = DOORS["native"](str(RECORDING), {"audio_headers": {"x": "y"}})
    with pytest.raises(InvalidRequestError, match="the file came with the request"):
        door.model(AppArgs())


@EACH_DOOR
def test_a_wrong_request_is_refused_without_asking(door: str) -> None:
    with pytest.raises(InvalidRequestError, match="Invalid beam_size"):
        DOORS[door](str(RECORDING), {"beam_size": 99}).model(AppArgs())


@EACH_DOOR
def test_an_application_that_needs_a_key_is_told_how(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, line = new_key("alice")
    keys = Keys.from_environment({"API_KEYS": line})
    app = api.build(router(Handle(stream=[events(transcript())])), keys)
    with served_app(app) as url:
        with pytest.raises(RequestFailed, match="set WHISPER_API_KEY to a key that"):
            asked(url, door, str(RECORDING))
        monkeypatch.setenv("WHISPER_API_KEY", key)
        assert "hello" in asked(url, door, str(RECORDING))


@EACH_DOOR
def test_the_applications_error_is_told(url: str, door: str, tmp_path: Path) -> None:
    text = tmp_path / 'a "quoted" name.txt'
    text.write_text("no recording")
    with pytest.raises(RequestFailed, match="Audio d(ownload|ecoding) failed"):
        DOORS[door](str(text), {}).ask(url)
