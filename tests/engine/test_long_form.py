import itertools
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from deployments.engine import mel
from deployments.engine.long_form import TranscriptionCancelled, transcribe
from tests.engine.tiny_whisper import recording, scripted, tiny_whisper, window

TWO_SEGMENTS = window((0, 10), (10, 20))
ONE_SEGMENT = window((0, 5))
SILENCE = window(silent=True)
FAILED = replace(ONE_SEGMENT, avg_logprob=-3.0)
SIMPLE: dict[str, Any] = {"language": "en", "temperature": 0.0, "fp16": False}


@pytest.fixture
def model() -> Whisper:
    return tiny_whisper()


class Heard:
    """What the callbacks of one run were given."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float]] = []
        self.segments: list[list[dict[str, Any]]] = []
        self.order: list[str] = []

    def on_progress(self, done: float, total: float) -> None:
        self.progress.append((done, total))
        self.order.append("progress")

    def on_segments(self, segments: list[dict[str, Any]]) -> None:
        self.segments.append(list(segments))
        self.order.append("segments")


def run(
    model: Whisper, windows: list[DecodingResult], seconds: float = 65, **options: Any
) -> tuple[dict[str, Any], Heard]:
    """Transcribe a recording in which `windows` are heard."""
    vars(model)["decode"] = scripted(windows)
    heard = Heard()
    result = transcribe(
        model,
        recording(seconds),
        on_progress=heard.on_progress,
        on_segments=heard.on_segments,
        **SIMPLE | options,
    )
    return result, heard


def test_progress_starts_at_nothing_and_ends_with_everything(model: Whisper) -> None:
    _, heard = run(model, [TWO_SEGMENTS, ONE_SEGMENT, ONE_SEGMENT])
    assert heard.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]


def test_each_window_delivers_the_segments_that_are_now_final(model: Whisper) -> None:
    result, heard = run(model, [TWO_SEGMENTS, ONE_SEGMENT, ONE_SEGMENT])
    assert [len(segments) for segments in heard.segments] == [2, 1, 1]
    assert list(itertools.chain(*heard.segments)) == result["segments"]
    assert [segment["id"] for segment in result["segments"]] == [0, 1, 2, 3]


def test_segments_are_delivered_before_the_progress_that_covers_them(
    model: Whisper,
) -> None:
    _, heard = run(model, [ONE_SEGMENT, ONE_SEGMENT], seconds=45)
    assert heard.order == ["progress", "segments", "progress", "segments", "progress"]


def test_progress_goes_through_skipped_silence(model: Whisper) -> None:
    result, heard = run(model, [SILENCE, ONE_SEGMENT, SILENCE])
    assert heard.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]
    assert [segment["start"] for segment in result["segments"]] == [30]
    assert heard.segments == [result["segments"]]


def test_a_silent_recording_delivers_no_segments_and_all_progress(
    model: Whisper,
) -> None:
    result, heard = run(model, [SILENCE] * 3)
    assert result["segments"] == heard.segments == []
    assert heard.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]


def test_an_empty_recording_is_done_at_once(model: Whisper) -> None:
    result, heard = run(model, [], seconds=0)
    assert result == {"text": "", "segments": [], "language": "en"}
    assert (heard.progress, heard.segments) == ([(0, 0)], [])


def test_falling_back_to_another_temperature_is_no_progress(model: Whisper) -> None:
    windows = [FAILED, FAILED, ONE_SEGMENT, FAILED, ONE_SEGMENT]
    result, heard = run(model, windows, seconds=45, temperature=(0.0, 0.2, 0.4))
    assert heard.progress == [(0, 45), (30, 45), (45, 45)]
    assert [len(segments) for segments in heard.segments] == [1, 1]
    assert len(result["segments"]) == 2


def test_progress_never_goes_back_where_clips_do(model: Whisper) -> None:
    result, heard = run(model, [ONE_SEGMENT] * 2, clip_timestamps="40,50,0,10")
    assert heard.progress == [(0, 65), (40, 65), (65, 65)]
    assert [segment["start"] for segment in result["segments"]] == [40, 0]
    assert list(itertools.chain(*heard.segments)) == result["segments"]


def test_nothing_is_decoded_once_it_is_cancelled(model: Whisper) -> None:
    decoded = 0

    def decode(_: Tensor, __: DecodingOptions) -> DecodingResult:
        nonlocal decoded
        decoded += 1
        return ONE_SEGMENT

    vars(model)["decode"] = decode
    with pytest.raises(TranscriptionCancelled):
        transcribe(
            model,
            recording(100),
            cancelled=lambda: decoded == 2,
            language="en",
            fp16=False,
        )
    assert decoded == 2


@pytest.mark.parametrize("callback", ["on_progress", "on_segments", "cancelled"])
def test_an_error_in_a_callback_reaches_the_caller(
    model: Whisper, callback: str
) -> None:
    def fail(*_: Any) -> bool:
        raise LookupError(callback)

    vars(model)["decode"] = scripted([ONE_SEGMENT] * 2)
    with pytest.raises(LookupError, match=callback):
        transcribe(
            model,
            recording(45),
            language="en",
            fp16=False,
            **{callback: fail},  # type: ignore[arg-type]
        )


# Multiples of 10 ms, and recordings whose last frame is no whole one.
@pytest.mark.parametrize("samples", [32_000, 32_079, 32_081, 32_159, 100, 1])
@pytest.mark.parametrize("clips", ["0,9999", [0.0, 9999.0], "0,1,1.5,2.006", "0.3,7,8"])
def test_a_clip_that_ends_after_the_recording_ends_with_it(
    model: Whisper, samples: int, clips: str | list[float]
) -> None:
    # Upstream decodes what lies behind the end again and again: a fourth window is one too many.
    windows = [window((0, 0.1))] * 3
    result, heard = run(model, windows, samples / 16_000, clip_timestamps=clips)
    assert heard.progress[-1] == (samples / 16_000, samples / 16_000)
    assert len(result["segments"]) <= 2


def test_a_clip_reaches_to_the_last_whole_frame(model: Whisper) -> None:
    seen: list[Tensor] = []

    def decode(mel: Tensor, _: DecodingOptions) -> DecodingResult:
        seen.append(mel)
        return ONE_SEGMENT

    for clips in ("0", "0,9999"):
        vars(model)["decode"] = decode
        transcribe(
            model, recording(2.006), clip_timestamps=clips, language="en", fp16=False
        )
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_no_clips_means_the_whole_recording_as_in_whisper(model: Whisper) -> None:
    nowhere: list[str | list[float]] = ["", []]
    for clips in nowhere:
        result, _ = run(model, [ONE_SEGMENT], seconds=20, clip_timestamps=clips)
        assert len(result["segments"]) == 1


def test_without_callbacks_it_is_just_whisper(model: Whisper) -> None:
    vars(model)["decode"] = scripted([TWO_SEGMENTS])
    result = transcribe(model, recording(20), language="en", fp16=False)
    assert [(s["start"], s["end"]) for s in result["segments"]] == [(0, 10), (10, 20)]


def test_the_official_module_is_left_untouched() -> None:
    official = sys.modules["whisper.transcribe"]
    assert vars(official)["log_mel_spectrogram"] is whisper.audio.log_mel_spectrogram
    assert whisper.transcribe is vars(official)["transcribe"] is Whisper.transcribe
    assert mel.log_mel_spectrogram is not whisper.audio.log_mel_spectrogram


def test_the_recording_is_not_changed(model: Whisper) -> None:
    audio = recording(2)
    before = audio.copy()
    audio.setflags(write=False)
    vars(model)["decode"] = scripted([ONE_SEGMENT])
    transcribe(model, audio, language="en", fp16=False)
    np.testing.assert_array_equal(audio, before)
