"""OpenAI's own client against the whole service, with real weights and real speech."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from openai import OpenAI

from tests.support.app import AUDIO, App, Url

GREEDY = {"beam_size": "null", "temperature_increment_on_fallback": "null"}


@pytest.fixture
def client(app: App) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{app.url}/v1", api_key="any", _strict_response_validation=True
    ) as client:
        yield client


def transcribe(client: OpenAI, name: str, **fields: Any) -> Any:
    return client.audio.transcriptions.create(
        file=AUDIO / name, model="whisper-1", extra_body=GREEDY, **fields
    )


def test_an_upload_is_transcribed_as_the_native_door_does(
    app: App, audio_url: Url, client: OpenAI
) -> None:
    native = app.transcribe(
        audio=audio_url("declaracao.ogg"),
        beam_size=None,
        temperature_increment_on_fallback=None,
        word_timestamps=True,
    )
    answer = transcribe(
        client,
        "declaracao.ogg",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (answer.text, answer.language) == (native["transcription"], "portuguese")
    assert answer.duration == native["duration"]
    times = [(word["word"], word["start"]) for word in native["word_timestamps"]]
    assert [(word.word, word.start) for word in answer.words] == times
    tokens = [segment["tokens"] for segment in native["segments"]]
    assert [segment.tokens for segment in answer.segments] == tokens
    assert "".join(segment.text for segment in answer.segments).strip() == answer.text


def test_a_stream_ends_with_what_one_body_would_hold(client: OpenAI) -> None:
    whole = transcribe(client, "gettysburg.wav", language="en")
    *deltas, done = transcribe(client, "gettysburg.wav", language="en", stream=True)
    assert len(deltas) == len(done.segments)
    assert "".join(event.delta for event in deltas) == done.text == whole.text
    assert done.language == "english"


def test_subtitles_come_with_the_requests_id_once(app: App) -> None:
    with (AUDIO / "jfk.flac").open("rb") as file:
        response = requests.post(
            f"{app.url}/v1/audio/transcriptions",
            data={"response_format": "srt", "max_line_width": "30", **GREEDY},
            files={"file": file},
            headers={"x-request-id": "mine"},
            timeout=300,
        )
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.startswith("1\n00:00:00,000 --> ")
    assert max(map(len, response.text.split("\n"))) <= 30
    assert "ask not what your country" in " ".join(response.text.split())


def test_a_translation_is_english(client: OpenAI) -> None:
    with pytest.warns(DeprecationWarning):
        answer = client.audio.translations.create(
            file=AUDIO / "montagne.ogg",
            model="whisper-1",
            response_format="verbose_json",
        )
    assert answer.language == "english"
    assert answer.text
