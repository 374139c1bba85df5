"""The answer equals what `whisper.transcribe` gives for the same options and waveform."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deployments.audio import SAMPLE_RATE
from deployments.contract.answer import Answer, Timings
from tests.support.app import AUDIO, App, Url
from tools.official import assert_official, waveform

# Named and valued alike in a request and in Whisper.
SONNET: dict[str, Any] = {
    "initial_prompt": "Sonnets of William Shakespeare",
    "carry_initial_prompt": True,
    "clip_timestamps": [0, 2.5, 4.0],
    "suppress_tokens": [-1, 13],
    "beam_size": 3,
    "patience": 1.5,
    "length_penalty": 0.5,
}
RULES_OFF: dict[str, Any] = {
    "word_timestamps": True,
    "hallucination_silence_threshold": 0.5,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "prepend_punctuations": "",
    "append_punctuations": "",
}


def test_the_defaults_and_every_field_of_the_answer(app: App, audio_url: Url) -> None:
    answer = app.transcribe(audio=audio_url("declaracao.ogg"))
    assert_official(answer, "base", "declaracao.ogg")
    assert (answer["model"], answer["device"]) == ("base", "cpu")
    assert answer["detected_language"] == "pt"
    assert answer["duration"] == len(waveform("declaracao.ogg")) / SAMPLE_RATE
    assert "word_timestamps" not in answer
    Answer.model_validate(answer)
    assert {*answer, "word_timestamps", "chunks"} == set(Answer.model_fields)
    timings = answer["timings"]
    assert set(timings) == set(Timings.model_fields)
    assert timings["transcribe"] > timings["decode"] > 0
    assert answer["batch_windows"] == 1
    assert answer["language_probability"] > 0.5
    assert answer["warnings"] == []


def test_words_of_an_english_model(app: App, audio_url: Url) -> None:
    answer = app.transcribe(
        audio=audio_url("jfk.flac"), model="tiny.en", word_timestamps=True
    )
    assert_official(answer, "tiny.en", "jfk.flac", word_timestamps=True)
    assert "ask not what your country can do for you" in answer["transcription"]
    assert len(answer["word_timestamps"]) == 22


@pytest.mark.parametrize(
    ("model", "file", "request_fields", "official_options"),
    [
        pytest.param(
            "base",
            "weissenburg.webm",
            {"language": "German", "beam_size": None, "word_timestamps": True},
            {"language": "de", "beam_size": None, "word_timestamps": True},
            id="greedy, language by name, words",
        ),
        pytest.param(
            "base",
            "montagne.ogg",
            {"task": "translate", "temperature_increment_on_fallback": None},
            {"task": "translate", "temperature": 0.0},
            id="translation without fallback",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "tiny.en",
            "gettysburg.wav",
            {
                "temperature": 0.7,
                "temperature_increment_on_fallback": 0,
                "best_of": 2,
                "condition_on_previous_text": False,
            },
            {"temperature": 0.7, "best_of": 2, "condition_on_previous_text": False},
            id="sampling",
        ),
        pytest.param(
            "tiny.en",
            "sonnet.aac",
            SONNET | {"temperature_increment_on_fallback": None},
            SONNET | {"temperature": 0.0},
            id="prompt, clips, suppressed tokens, beam options",
        ),
        pytest.param(
            "tiny.en",
            "jfk.mp4",
            RULES_OFF,
            RULES_OFF,
            id="a video, rules switched off",
        ),
    ],
)
def test_options_mean_what_they_mean_in_whisper(
    app: App,
    audio_url: Url,
    model: str,
    file: str,
    request_fields: dict[str, Any],
    official_options: dict[str, Any],
) -> None:
    answer = app.transcribe(audio=audio_url(file), model=model, **request_fields)
    assert_official(answer, model, file, **official_options)


def test_silence_has_no_text(app: App, audio_url: Url) -> None:
    answer = app.transcribe(audio=audio_url("silence.wav"), model="tiny.en")
    assert_official(answer, "tiny.en", "silence.wav")


def test_audio_inside_the_request(app: App) -> None:
    data = base64.b64encode((AUDIO / "jfk.mp3").read_bytes()).decode()
    answer = app.transcribe(audio_base64=data, model="tiny.en")
    assert_official(answer, "tiny.en", "jfk.mp3")


def test_a_request_as_browsers_and_forms_write_it(app: App) -> None:
    data = base64.urlsafe_b64encode((AUDIO / "jfk.flac").read_bytes()).decode()
    answer = app.transcribe(
        audio="data:audio/flac;codecs=flac;base64," + data.rstrip("="),
        model="openai/whisper-Tiny.en",
        language="en_US",
        word_timestamps="true",
        initial_prompt="",
    )
    assert answer["model"] == "tiny.en"
    assert_official(answer, "tiny.en", "jfk.flac", word_timestamps=True)
    texts = ["".join(w["word"] for w in s["words"]) for s in answer["segments"]]
    assert "".join(texts).strip() == answer["transcription"]


def test_a_request_may_stand_inside_input(app: App, audio_url: Url) -> None:
    inner = {"audio": audio_url("jfk.flac"), "model": "tiny.en", "beam_size": None}
    answer = app.transcribe(input=inner)
    assert_official(answer, "tiny.en", "jfk.flac", beam_size=None)


@pytest.mark.slow
def test_eight_recordings_at_once_on_two_models(app: App, audio_url: Url) -> None:
    jobs = [
        ("tiny.en", "jfk.flac"),
        ("base", "coxinha.wav"),
        ("tiny.en", "gettysburg.wav"),
        ("base", "montagne.ogg"),
        ("tiny.en", "sonnet.ogg"),
        ("base", "veneno.m4a"),
        ("tiny.en", "jfk-phone.wav"),
        ("base", "weissenburg.webm"),
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        answers = threads.map(
            lambda job: app.transcribe(audio=audio_url(job[1]), model=job[0]), jobs
        )
        for (model, file), answer in zip(jobs, answers, strict=True):
            assert answer["model"] == model
            assert_official(answer, model, file)


@pytest.mark.slow
def test_a_language_that_was_detected_in_silence_is_told(
    app: App, audio_url: Url
) -> None:
    """40 s of silence, then Portuguese, which official Whisper takes for English."""
    quick = {"beam_size": None, "temperature_increment_on_fallback": None}
    late = app.transcribe(audio=audio_url("inputs/late.ogg"), **quick)
    assert late["detected_language"] == "en"
    [warning] = late["warnings"]
    assert warning.startswith("The language 'en' was detected in the first 30 s")
    named = app.transcribe(audio=audio_url("inputs/late.ogg"), language="pt", **quick)
    assert named["warnings"] == []
