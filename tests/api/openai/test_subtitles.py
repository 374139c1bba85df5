"""Subtitles by Whisper's own writers, which a process without torch can use."""

import io
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper import utils

from deployments.api.openai import subtitles
from deployments.api.openai.subtitles import SubtitleOptions
from tests.api.openai.transcripts import segments

ROOT = Path(__file__).parents[3]


def srt(**options: Any) -> str:
    return subtitles.write("srt", segments(), SubtitleOptions(**options))


def test_without_options_each_segment_is_a_cue() -> None:
    expected = (
        "1\n00:00:00,000 --> 00:00:03,000\nAnd so, my fellow Americans.\n\n"
        "2\n00:00:07,000 --> 00:00:08,000\nAsk not.\n\n"
    )
    assert srt() == expected
    assert subtitles.write("srt", segments(words=False), SubtitleOptions()) == expected
    assert subtitles.write("srt", [], SubtitleOptions()) == ""


def test_vtt_has_its_head_and_its_own_times() -> None:
    assert subtitles.write("vtt", segments(), SubtitleOptions()) == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:03.000\nAnd so, my fellow Americans.\n\n"
        "00:07.000 --> 00:08.000\nAsk not.\n\n"
    )
    assert subtitles.write("vtt", [], SubtitleOptions()) == "WEBVTT\n\n"


def test_lines_are_as_wide_as_asked() -> None:
    assert "\nAnd so, my\nfellow\nAmericans.\n" in srt(max_line_width=10)


def test_cues_have_as_many_lines_as_asked_and_break_at_pauses() -> None:
    assert srt(max_line_width=12, max_line_count=1).count(" --> ") == 4
    assert "Americans. Ask" not in srt(max_line_width=100, max_line_count=2)


def test_cues_have_as_many_words_as_asked() -> None:
    cues = srt(max_words_per_line=2).split("\n\n")
    assert cues[0] == "1\n00:00:00,000 --> 00:00:01,000\nAnd so,"


def test_the_spoken_word_is_underlined() -> None:
    assert "\n<u>And</u> so, my fellow Americans.\n" in srt(highlight_words=True)


def test_an_arrow_in_the_text_does_not_end_the_cue() -> None:
    line = [(" a", 0.0, 1.0), (" -->", 1.0, 2.0), (" b", 2.0, 3.0)]
    for words in (True, False):
        text = subtitles.write("srt", segments(words, [line]), SubtitleOptions())
        assert text.endswith("\na -> b\n\n")


_words = st.builds(
    lambda text, start, length: (" " + text, start, start + length),
    st.text("abc,é世", min_size=1, max_size=12),
    st.floats(0, 20_000),
    st.floats(0, 9),
)
_limits = st.none() | st.integers(1, 40)


@given(
    st.lists(st.lists(_words, min_size=1, max_size=12), max_size=6),
    st.builds(SubtitleOptions, _limits, _limits, _limits, st.booleans()),
)
def test_subtitles_are_those_of_the_installed_whisper(
    lines: list[Any], options: SubtitleOptions
) -> None:
    found = segments(lines=lines)
    result = {"segments": [segment.model_dump() for segment in found]}
    for kind, writer in (("srt", utils.WriteSRT), ("vtt", utils.WriteVTT)):
        file = io.StringIO()
        writer("").write_result(result, file, **asdict(options))
        assert subtitles.write(kind, found, options) == file.getvalue()  # type: ignore[arg-type]


def test_whispers_file_has_what_is_used_of_it() -> None:
    for name in ("WriteSRT", "WriteVTT"):
        writer = getattr(utils, name)("")
        options = asdict(SubtitleOptions())
        assert isinstance(writer, utils.SubtitlesWriter)
        assert list(writer.iterate_result({"segments": []}, **options)) == []


def test_the_routers_process_loads_no_torch_for_them() -> None:
    program = """
import sys
from deployments import api
from deployments.api.openai import subtitles
from tests.api.openai.transcripts import segments
text = subtitles.write("srt", segments(), subtitles.SubtitleOptions(max_line_width=9))
assert "fellow" in text
print([name for name in ("torch", "whisper", "numba") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("count", [1, 3])
def test_long_cues_of_many_words_keep_them_all(count: int) -> None:
    text = srt(max_words_per_line=count)
    for word in ("And", "fellow", "Americans.", "Ask", "not."):
        assert word in text
