"""`chunking_strategy` on the running service, through both HTTP doors."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import requests

from deployments.audio import SAMPLE_RATE
from tests.support.app import App
from tests.support.recordings import as_wav, pcm
from tools.official import as_official, assert_equals_official, transcribe

SILENCE = np.zeros(30 * SAMPLE_RATE, dtype=np.int16)


def as_base64(*parts: np.ndarray) -> str:
    return base64.b64encode(as_wav(*parts)).decode()


def of_the_chunk(answer: dict[str, Any], number: int) -> dict[str, Any]:
    """An answer as if the chunk were the whole recording."""
    chunk = answer["chunks"][number]
    start, end = chunk["start"], chunk["end"]

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        return part | {key: round(part[key] - start, 2) for key in ("start", "end")}

    def within(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [moved(part) for part in parts if start <= part["start"] < end]

    segments = [
        segment
        | {
            "id": place,
            "seek": segment["seek"] - round(start * 100),
            "words": [moved(word) for word in segment["words"]],
        }
        for place, segment in enumerate(within(answer["segments"]))
    ]
    return {
        "transcription": " ".join(segment["text"] for segment in segments),
        "detected_language": answer["detected_language"],
        "segments": segments,
        "word_timestamps": within(answer["word_timestamps"]),
    }


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        ("tiny.en", "jfk.flac", "gettysburg.wav"),
        pytest.param("base", "declaracao.ogg", "sonnet.ogg", marks=pytest.mark.slow),
    ],
)
def test_each_chunk_is_official(app: App, model: str, first: str, second: str) -> None:
    recording = np.concatenate([SILENCE, pcm(first), SILENCE, pcm(second)])
    answer = app.transcribe(
        audio_base64=as_base64(recording),
        model=model,
        chunking_strategy="auto",
        word_timestamps=True,
    )
    assert len(answer["chunks"]) == 2
    assert answer["warnings"] == []
    for number, chunk in enumerate(answer["chunks"]):
        piece = recording[
            round(chunk["start"] * SAMPLE_RATE) : round(chunk["end"] * SAMPLE_RATE)
        ]
        expected = transcribe(
            model,
            as_official(piece),
            language=answer["detected_language"],
            word_timestamps=True,
        )
        assert_equals_official(of_the_chunk(answer, number), expected)
    ids = [segment["id"] for segment in answer["segments"]]
    assert ids == list(range(len(ids)))
    if model == "base":
        assert answer["detected_language"] == "pt"
        assert answer["language_probability"] > 0.5


def test_events_come_in_the_order_of_the_recording(app: App) -> None:
    speech = pcm("jfk.flac")
    request = {
        "audio_base64": as_base64(*[speech, SILENCE] * 4),
        "model": "tiny.en",
        "chunking_strategy": {"type": "server_vad", "silence_duration_ms": 500},
        "stream": True,
    }
    response = requests.post(f"{app.url}/transcribe", json=request, timeout=300)
    events = [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: ")
    ]
    segments = [event["segment"] for event in events if event["event"] == "segment"]
    done = [event["done"] for event in events if event["event"] == "progress"]
    assert done == sorted(done)
    result = events[-1]["result"]
    assert done[-1] == result["duration"] == len(SILENCE) * 4 / SAMPLE_RATE + 44
    assert segments == result["segments"]
    assert len(result["chunks"]) == 4
    assert result["batch_windows"] > 1


def test_openais_door_leaves_silence_silent(app: App) -> None:
    response = requests.post(
        f"{app.url}/v1/audio/transcriptions",
        files={"file": ("silence.wav", as_wav(SILENCE, SILENCE))},
        data={
            "model": "base",
            "response_format": "verbose_json",
            "chunking_strategy[type]": "server_vad",
            "chunking_strategy[threshold]": "0.4",
        },
        timeout=300,
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["text"], answer["segments"]) == ("", [])
    assert answer["language"] == ""
    assert answer["warnings"][-1].startswith("chunking_strategy: no speech was found")


def test_openais_stream_and_its_verbose_answer_are_in_the_order_of_the_recording(
    app: App,
) -> None:
    recording = as_wav(*[pcm("jfk.flac"), SILENCE] * 3)

    def ask(**fields: str) -> requests.Response:
        response = requests.post(
            f"{app.url}/v1/audio/transcriptions",
            files={"file": ("speech.wav", recording)},
            data={"model": "tiny.en", "chunking_strategy": "auto"} | fields,
            timeout=300,
        )
        assert response.status_code == 200, response.text
        return response

    events = [
        json.loads(line.removeprefix("data: "))
        for line in ask(stream="true").text.splitlines()
        if line.startswith("data: {")
    ]
    verbose = ask(response_format="verbose_json").json()
    deltas = "".join(event.get("delta", "") for event in events)
    assert deltas == events[-1]["text"] == verbose["text"]
    assert verbose["text"].count("ask not what your country can do for you") == 3
    assert [chunk["start"] // 41 for chunk in verbose["chunks"]] == [0, 1, 2]
    starts = [segment["start"] for segment in verbose["segments"]]
    assert starts == sorted(starts)
    subtitles = ask(response_format="srt").text
    assert subtitles.startswith("1\n00:00:")
    assert "\n00:01:2" in subtitles
