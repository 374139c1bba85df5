import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
import whisper
import whisper.timing
from whisper.audio import HOP_LENGTH, N_SAMPLES
from whisper.decoding import DecodingOptions, DecodingResult
from whisper.model import Whisper

from deployments.engine.upstream import timing as alignment
from deployments.engine.upstream import transcribe as long_form
from deployments.engine.upstream.log_mel import Mel, Spectrogram
from deployments.engine.upstream.model_facts import ModelFacts
from deployments.engine.upstream.timing import AttendedFrames
from deployments.engine.upstream.transcribe import transcribe
from tests.support.engine.tiny_whisper import DIMENSIONS, recording, window

TWO_SEGMENTS = window((0, 10), (10, 20))
ONE_SEGMENT = window((0, 5))
SILENCE = window(silent=True)
FAILED = replace(ONE_SEGMENT, avg_logprob=-3.0)
SIMPLE: dict[str, Any] = {"language": "en", "temperature": 0.0, "fp16": False}


class ScriptedSession:
    """A model that decodes `windows`, one after the other.

    log: names of the methods and callbacks that were called, in order
    """

    def __init__(self, windows: Sequence[DecodingResult]) -> None:
        self.facts = ModelFacts(DIMENSIONS, torch.device("cpu"), True, 99)
        self.window: Mel | None = None
        self.mels: list[Mel] = []
        self.options: list[DecodingOptions] = []
        self.aligned: list[Mel] = []
        self.log: list[str] = []
        self.progress: list[tuple[float, float]] = []
        self.segments: list[list[dict[str, Any]]] = []
        self.has_slot = False
        self.had_slot_in_callbacks: list[bool] = []
        self._to_hear = iter(windows)

    def log_mel(self, audio: np.ndarray) -> Mel:
        """A spectrogram whose frames have different values."""
        frames = (len(audio) + N_SAMPLES) // HOP_LENGTH
        return numbered_frames(frames)

    def detect_language(self, mel: Mel) -> dict[str, float]:
        self.log.append("detect")
        self.has_slot = True
        return {"en": 0.2, "pt": 0.7, "de": 0.1}

    def decode(self, mel: Mel, options: DecodingOptions) -> DecodingResult:
        self.log.append("decode")
        self.window = mel
        self.has_slot = True
        self.mels.append(mel)
        self.options.append(options)
        return next(self._to_hear)

    def attended_frames(
        self,
        mel: Mel,
        sot_sequence: Sequence[int],
        no_timestamps: int,
        text: Sequence[int],
        frames: int,
    ) -> AttendedFrames:
        self.log.append("align")
        self.aligned.append(mel)
        # Each token attends to its own share of the window.
        matrix = np.zeros((len(text) + 1, frames))
        for token, share in enumerate(np.array_split(np.arange(frames), len(matrix))):
            matrix[token, share] = 1
        return AttendedFrames(matrix, np.full(len(text), 0.5))

    def leave_window(self) -> None:
        self.log.append("leave")
        self.window = None
        self.has_slot = False

    def on_progress(self, done: float, total: float) -> None:
        self.progress.append((done, total))
        self.log.append("progress")
        self.had_slot_in_callbacks.append(self.has_slot)

    def on_segments(self, segments: list[dict[str, Any]]) -> None:
        self.segments.append(list(segments))
        self.log.append("segments")
        self.had_slot_in_callbacks.append(self.has_slot)

    @property
    def callbacks(self) -> list[str]:
        return [name for name in self.log if name in ("progress", "segments")]

    def transcribe(self, audio: np.ndarray, **options: Any) -> dict[str, Any]:
        return transcribe(self, audio, **SIMPLE | options)


def numbered_frames(frames: int) -> Mel:
    logarithms = torch.arange(1.0, frames + 1).repeat(DIMENSIONS.n_mels, 1)
    return Mel.of(Spectrogram(logarithms, torch.tensor(-torch.inf)))


def run(
    windows: Sequence[DecodingResult], seconds: float = 65, **options: Any
) -> tuple[dict[str, Any], ScriptedSession]:
    """Transcribe a recording in which `windows` are decoded."""
    session = ScriptedSession(windows)
    result = session.transcribe(
        recording(seconds),
        on_progress=session.on_progress,
        on_segments=session.on_segments,
        **options,
    )
    return result, session


def test_progress_starts_at_nothing_and_ends_with_everything() -> None:
    _, session = run([TWO_SEGMENTS, ONE_SEGMENT, ONE_SEGMENT])
    assert session.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]


def test_each_window_delivers_the_segments_that_are_now_final() -> None:
    result, session = run([TWO_SEGMENTS, ONE_SEGMENT, ONE_SEGMENT])
    assert [len(segments) for segments in session.segments] == [2, 1, 1]
    assert list(itertools.chain(*session.segments)) == result["segments"]
    assert [segment["id"] for segment in result["segments"]] == [0, 1, 2, 3]


def test_segments_are_delivered_before_the_progress_that_covers_them() -> None:
    _, session = run([ONE_SEGMENT, ONE_SEGMENT], seconds=45)
    expected = ["progress", "segments", "progress", "segments", "progress"]
    assert session.callbacks == expected


def test_progress_goes_through_skipped_silence() -> None:
    result, session = run([SILENCE, ONE_SEGMENT, SILENCE])
    assert session.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]
    assert [segment["start"] for segment in result["segments"]] == [30]
    assert session.segments == [result["segments"]]


def test_a_silent_recording_delivers_no_segments_and_all_progress() -> None:
    result, session = run([SILENCE] * 3)
    assert result["segments"] == session.segments == []
    assert session.progress == [(0, 65), (30, 65), (60, 65), (65, 65)]


def test_an_empty_recording_is_done_at_once() -> None:
    result, session = run([], seconds=0)
    assert result == {"text": "", "segments": [], "language": "en"}
    assert (session.progress, session.segments) == ([(0, 0)], [])


def test_falling_back_to_another_temperature_is_no_progress() -> None:
    windows = [FAILED, FAILED, ONE_SEGMENT, FAILED, ONE_SEGMENT]
    result, session = run(windows, seconds=45, temperature=(0.0, 0.2, 0.4))
    assert session.progress == [(0, 45), (30, 45), (45, 45)]
    assert [len(segments) for segments in session.segments] == [1, 1]
    assert len(result["segments"]) == 2
    temperatures = [options.temperature for options in session.options]
    assert temperatures == [0.0, 0.2, 0.4, 0.0, 0.2]


def test_progress_never_goes_back_where_clips_do() -> None:
    result, session = run([ONE_SEGMENT] * 2, clip_timestamps="40,50,0,10")
    assert session.progress == [(0, 65), (40, 65), (65, 65)]
    assert [segment["start"] for segment in result["segments"]] == [40, 0]
    assert list(itertools.chain(*session.segments)) == result["segments"]


def test_the_slot_of_a_window_is_given_back_before_the_callbacks_and_the_next_window() -> (
    None
):
    _, session = run([ONE_SEGMENT, SILENCE, ONE_SEGMENT])
    assert session.log[:8] == [
        *("progress", "decode"),
        *("leave", "segments", "progress", "decode"),
        *("leave", "progress"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": None},
        pytest.param(
            {"language": None, "clip_timestamps": "40,50,0,10"},
            marks=pytest.mark.xfail(
                strict=True, reason="heard for its language, but not the first window"
            ),
        ),
        {"word_timestamps": True},
    ],
    ids=str,
)
def test_no_slot_is_held_while_callbacks_run(options: dict[str, Any]) -> None:
    _, session = run([ONE_SEGMENT] * 3, **options)
    assert len(session.had_slot_in_callbacks) > 3
    assert not any(session.had_slot_in_callbacks)


def test_a_window_keeps_its_slot_from_one_temperature_to_the_next() -> None:
    windows = [FAILED, FAILED, ONE_SEGMENT, FAILED, ONE_SEGMENT]
    _, session = run(windows, seconds=45, temperature=(0.0, 0.2, 0.4))
    work = [name for name in session.log if name in ("decode", "leave")]
    assert work[:6] == [*["decode"] * 3, "leave", *["decode"] * 2]
    first, second = session.mels[0], session.mels[-1]
    assert [mel is first for mel in session.mels] == [True] * 3 + [False] * 2
    assert [mel is second for mel in session.mels] == [False] * 3 + [True] * 2


def test_a_window_keeps_its_slot_until_its_words_are_aligned() -> None:
    result, session = run([TWO_SEGMENTS, ONE_SEGMENT], word_timestamps=True, seconds=35)
    work = [name for name in session.log if name in ("decode", "align", "leave")]
    assert work[:5] == ["decode", "align", "leave", "decode", "align"]
    assert session.aligned[0] is session.mels[0]
    assert session.aligned[1] is session.mels[1]
    words = [segment["words"] for segment in result["segments"]]
    assert [[word["word"] for word in part] for part in words] == [[" Hello"]] * 3


def test_the_language_is_asked_for_once_if_it_is_not_given() -> None:
    result, session = run([ONE_SEGMENT] * 2, seconds=45, language=None)
    assert result["language"] == "pt"
    assert session.log.count("detect") == 1
    assert [options.language for options in session.options] == ["pt", "pt"]
    _, session = run([ONE_SEGMENT] * 2, seconds=45)
    assert "detect" not in session.log


@pytest.mark.parametrize("callback", ["on_progress", "on_segments"])
def test_an_error_in_a_callback_reaches_the_caller(callback: str) -> None:
    def fail(*_: Any) -> None:
        raise LookupError(callback)

    session = ScriptedSession([ONE_SEGMENT] * 2)
    with pytest.raises(LookupError, match=callback):
        session.transcribe(recording(45), **{callback: fail})


def test_an_error_of_the_session_reaches_the_caller() -> None:
    session = ScriptedSession([ONE_SEGMENT])
    with pytest.raises(StopIteration):
        session.transcribe(recording(45), on_segments=session.on_segments)
    assert len(session.segments) == 1


# Multiples of 10 ms, and recordings whose last frame is no whole one.
@pytest.mark.parametrize("samples", [32_000, 32_079, 32_081, 32_159, 100, 1])
@pytest.mark.parametrize("clips", ["0,9999", [0.0, 9999.0], "0,1,1.5,2.006", "0.3,7,8"])
def test_a_clip_that_ends_after_the_recording_ends_with_it(
    samples: int, clips: str | list[float]
) -> None:
    # Upstream would decode the silence after the end again and again. A fourth window would fail.
    windows = [window((0, 0.1))] * 3
    result, session = run(windows, samples / 16_000, clip_timestamps=clips)
    assert session.progress[-1] == (samples / 16_000, samples / 16_000)
    assert len(result["segments"]) <= 2


def test_a_clip_reaches_to_the_last_whole_frame() -> None:
    seen = [
        run([ONE_SEGMENT], 2.006, clip_timestamps=clips)[1].mels
        for clips in ("0", "0,9999")
    ]
    assert torch.equal(*(mel.tensor() for mels in seen for mel in mels))


def test_no_clips_means_the_whole_recording_as_in_whisper() -> None:
    nowhere: list[str | list[float]] = ["", []]
    for clips in nowhere:
        result, _ = run([ONE_SEGMENT], seconds=20, clip_timestamps=clips)
        assert len(result["segments"]) == 1


def test_without_callbacks_it_is_just_whisper() -> None:
    result = ScriptedSession([TWO_SEGMENTS]).transcribe(recording(20))
    assert [(s["start"], s["end"]) for s in result["segments"]] == [(0, 10), (10, 20)]


def test_the_official_modules_are_left_untouched() -> None:
    official, timing = sys.modules["whisper.transcribe"], whisper.timing
    assert vars(official)["log_mel_spectrogram"] is whisper.audio.log_mel_spectrogram
    assert vars(official)["add_word_timestamps"] is timing.add_word_timestamps
    assert whisper.transcribe is vars(official)["transcribe"] is Whisper.transcribe
    for name in ("find_alignment", "add_word_timestamps", "dtw", "median_filter"):
        function = vars(timing)[name]
        assert function.__module__ == "whisper.timing"
        assert function.__globals__ is vars(timing)
    assert timing.find_alignment is not alignment.find_alignment


def test_everything_else_of_them_runs_unmodified() -> None:
    copies = [
        (long_form.OFFICIAL, sys.modules["whisper.transcribe"]),
        (long_form.TIMING, whisper.timing),
    ]
    replaced = {
        name
        for copy, official in copies
        for name, value in vars(copy).items()
        if isinstance(value, FunctionType)
        and value.__code__ != vars(official)[name].__code__
    }
    assert replaced == {"log_mel_spectrogram", "pad_or_trim", "find_alignment"}


def test_the_recording_is_not_changed() -> None:
    audio = recording(2)
    before = audio.copy()
    audio.setflags(write=False)
    ScriptedSession([ONE_SEGMENT]).transcribe(audio)
    np.testing.assert_array_equal(audio, before)


@pytest.mark.parametrize("start", [0, 1, 4000, 6990, 7000])
@pytest.mark.parametrize("frames", [0, 1, 700, 2999, 3000, 4000])
def test_windows_are_cut_and_padded_as_whisper_does_it(start: int, frames: int) -> None:
    mel = numbered_frames(7000)
    whole, window = mel.tensor(), mel[:, start : start + frames]
    expected = whole[:, start : start + frames]
    assert window.shape == expected.shape
    assert torch.equal(window.tensor(), expected)
    expected = whisper.pad_or_trim(expected, 3000)
    padded = vars(long_form.OFFICIAL)["pad_or_trim"](window, 3000)
    assert padded.to(torch.device("cpu")).to(torch.float32) is padded
    assert padded.shape == expected.shape
    assert torch.equal(padded.tensor(), expected)


def test_a_window_of_a_window_is_whispers() -> None:
    mel = numbered_frames(500)
    part, expected = mel[:, 100:400], mel.tensor()[:, 100:400]
    assert torch.equal(part[:, 50:80].tensor(), expected[:, 50:80])
    assert torch.equal(part[:, 250:999].tensor(), expected[:, 250:999])
    assert torch.equal(part.padded(10).tensor(), whisper.pad_or_trim(expected, 10))


def test_only_the_same_frames_of_the_same_recording_are_the_same_window() -> None:
    one, other = numbered_frames(50), numbered_frames(50)
    assert one[:, 0:10].padded(20) == one[:, :10].padded(20)
    assert one[:, 0:10].padded(20) != one[:, 0:10].padded(21)
    assert one[:, 0:10] != one[:, 1:11]
    assert one[:, 0:10] != other[:, 0:10]


@pytest.mark.parametrize("index", [(slice(3), slice(5)), (slice(None), slice(0, 9, 2))])
def test_other_parts_of_a_spectrogram_are_refused(index: tuple[slice, slice]) -> None:
    with pytest.raises(IndexError, match="next to each other"):
        numbered_frames(50)[index]
