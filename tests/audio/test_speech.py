"""Where speech is found, with Silero VAD's own weights, and where a recording is cut."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.audio import SAMPLE_RATE, speech
from deployments.audio.speech import (
    LONGEST_CHUNK,
    Chunks,
    Span,
    SpeechCancelled,
    chunks_of,
)
from tests.support.recordings import pcm

STEP = SAMPLE_RATE // 100


def chunked(audio: np.ndarray, **options: Any) -> Chunks:
    defaults = {"threshold": 0.5, "padding_ms": 300, "silence_ms": 200}
    return chunks_of(audio, cancelled=lambda: False, **defaults | options)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.int16)


def seconds(chunks: Chunks) -> list[tuple[float, float]]:
    return [(s.start / SAMPLE_RATE, s.end / SAMPLE_RATE) for s in chunks.spans]


def test_speech_between_silences_is_found_where_it_is() -> None:
    spoken = pcm("jfk.flac")
    audio = np.concatenate([silence(40), spoken, silence(50), spoken, silence(3)])
    first, second = seconds(chunked(audio))
    assert first == pytest.approx((40.05, 50.9), abs=0.3)
    assert second == pytest.approx((101.05, 111.9), abs=0.3)


def test_what_fits_into_a_window_of_whisper_stays_together() -> None:
    audio = np.concatenate([pcm("gettysburg.wav"), silence(5), pcm("jfk.flac")])
    [(start, end)] = seconds(chunked(audio))
    assert start < 1
    assert end > 25


@pytest.mark.parametrize(
    "audio", [silence(70), silence(0.3), silence(0), pcm("silence.wav")]
)
def test_where_nobody_speaks_there_are_no_chunks(audio: np.ndarray) -> None:
    assert chunked(audio) == Chunks([], [])


def test_the_model_of_sequences_hears_what_silero_vad_hears_frame_by_frame() -> None:
    # Longer than what is given to the model at once.
    audio = np.concatenate([pcm("jfk.flac"), silence(2), pcm("gettysburg.wav")] * 2)
    ours = speech._probabilities(audio, lambda: False)
    # After ours: see tests/audio/test_speech_threads.py.
    from silero_vad import load_silero_vad

    frames = -(-len(audio) // 512)
    padded = torch.zeros(frames * 512)
    padded[: len(audio)] = torch.from_numpy(audio / np.float32(32768))
    model = load_silero_vad()
    theirs = [model(frame, SAMPLE_RATE).item() for frame in padded.reshape(frames, 512)]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_settings_are_obeyed() -> None:
    spoken = pcm("gettysburg.wav")
    audio = np.concatenate([silence(2), spoken, silence(2)])
    [(start, end)] = seconds(chunked(audio))
    [(wider_start, wider_end)] = seconds(chunked(audio, padding_ms=1000))
    assert (start - wider_start, wider_end - end) == pytest.approx((0.7, 0.7), abs=0.02)
    assert chunked(audio, threshold=1.0).spans == []
    everything = chunked(audio, threshold=0.0)
    assert everything.spans == [Span(0, len(audio))]


def test_many_searches_at_once_find_what_each_finds_alone() -> None:
    recordings = [
        np.concatenate(
            [silence(n), pcm("jfk.flac"), silence(40 - n), pcm("sonnet.ogg")]
        )
        for n in range(6)
    ]
    alone = [chunked(audio) for audio in recordings]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(chunked, recordings)) == alone


def test_a_caller_who_leaves_ends_the_search() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with pytest.raises(SpeechCancelled):
        chunks_of(
            silence(1000),
            threshold=0.5,
            padding_ms=0,
            silence_ms=0,
            cancelled=cancelled,
        )
    assert asked == 3


def test_speech_without_a_pause_is_cut_at_its_quietest_place() -> None:
    generator = np.random.default_rng(0)
    audio = generator.integers(-9000, 9000, 70 * SAMPLE_RATE, dtype=np.int16)
    for quiet in (22.0, 45.5):
        start = round(quiet * SAMPLE_RATE)
        audio[start : start + SAMPLE_RATE // 5] //= 8
    # Everything counts as speech.
    chunks = chunked(audio, threshold=0.0)
    cuts = [round(22.1 * SAMPLE_RATE), round(45.6 * SAMPLE_RATE)]
    assert chunks.cuts == cuts
    assert chunks.spans == [
        Span(0, cuts[0]),
        Span(cuts[0], cuts[1]),
        Span(cuts[1], len(audio)),
    ]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 2600)), min_size=1, max_size=40),
    st.integers(0, 511),
    st.sampled_from([0, 30, 300, 1000]),
    st.sampled_from([0, 200, 2000]),
)
def test_chunks_keep_the_rules_whatever_is_heard(
    heard: Sequence[tuple[bool, int]], lacks: int, padding_ms: int, silence_ms: int
) -> None:
    probabilities = [float(spoken) for spoken, frames in heard for _ in range(frames)]
    samples = len(probabilities) * 512 - lacks
    found = speech._speech(probabilities, samples, 0.5, padding_ms, silence_ms)
    chunks = speech._packed(np.zeros(samples, dtype=np.int16), found)
    ends = [0]
    for span in chunks.spans:
        assert ends[-1] <= span.start < span.end <= samples
        assert len(span) <= LONGEST_CHUNK
        assert span.start % STEP == 0
        assert span.end % STEP == 0 or span.end == samples
        ends.append(span.end)
    # Two chunks that stand next to each other would not fit into one.
    for span, after in zip(chunks.spans, chunks.spans[1:], strict=False):
        assert after.end - span.start > LONGEST_CHUNK
    # All speech is in a chunk.
    covered = sum(len(span) for span in chunks.spans)
    assert covered >= sum(len(span) for span in found)
    for one in found:
        assert any(span.start <= one.start < span.end for span in chunks.spans)
    # Cuts are where one chunk ends and the next begins, within speech.
    for cut in chunks.cuts:
        assert any(one.start < cut < one.end for one in found)
    longest = max((len(one) for one in found), default=0)
    assert (len(chunks.cuts) > 0) == (longest > LONGEST_CHUNK)
