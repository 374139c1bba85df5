"""Joined recordings: what is known of them agrees with their samples."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Span
from tests.support.recordings import as_wav
from tools.joined import (
    PAUSE_S,
    STRETCH_S,
    Joined,
    Utterance,
    entries_of,
    is_speech,
    join,
    sounds_of,
    utterances_of,
)

# Loud and constant, so that their samples are found again; each of a length of its own.
UTTERANCES = [
    Utterance(
        np.full((number + 1) * SAMPLE_RATE, 1000 * (number + 1), np.int16),
        f"Number {number}.",
        "en",
    )
    for number in range(5)
]
SOUND = np.full(SAMPLE_RATE, -20_000, np.int16)
MINUTES = 10


def joined(seed: int = 0, speechless: float = 0.2, minutes: float = MINUTES) -> Joined:
    return join(UTTERANCES, [SOUND], 60 * minutes, speechless=speechless, seed=seed)


def seconds(span: Span) -> float:
    return len(span) / SAMPLE_RATE


def test_every_utterance_is_where_it_is_said_to_be() -> None:
    recording = joined()
    by_text = {one.text: one.pcm for one in UTTERANCES}
    for one in recording.spoken:
        samples = recording.pcm[one.span.start : one.span.end]
        assert np.array_equal(samples, by_text[one.text])
    assert recording.text == " ".join(one.text for one in recording.spoken)


def test_all_other_samples_are_pauses_or_stretches_without_speech() -> None:
    recording = joined()
    spoken = [one.span for one in recording.spoken]
    spans = sorted([*spoken, *recording.speechless], key=lambda span: span.start)
    assert spans[-1].end == len(recording.pcm)
    starts = [0, *(span.end for span in spans)]
    for span, before in zip(spans, starts, strict=False):
        pause = recording.pcm[before : span.start]
        assert np.abs(pause.astype(int)).max(initial=0) < 200
        # The first stretch, and one after an utterance, begin without a pause.
        if span in spoken:
            assert PAUSE_S[0] <= len(pause) / SAMPLE_RATE <= PAUSE_S[1]
            # Zeros would be no microphone's silence.
            assert pause.std() > 5
        else:
            assert len(pause) == 0


def test_the_stretches_hold_sound_or_near_silence_and_no_speech() -> None:
    levels = set()
    recording = joined()
    for span in recording.speechless:
        assert STRETCH_S[0] <= seconds(span) <= STRETCH_S[1]
        mean = recording.pcm[span.start : span.end].mean()
        levels.add(round(mean, -1))
    assert levels == {0, -20_000}


def test_the_stretches_are_the_wanted_share_and_lie_evenly() -> None:
    for minutes in (10, 60):
        recording = joined(minutes=minutes)
        assert 60 * minutes - 20 < recording.seconds <= 60 * minutes
        share = sum(map(seconds, recording.speechless)) / recording.seconds
        assert share == pytest.approx(0.2, abs=STRETCH_S[1] / (60 * minutes))
        edges = [0, *(span.end for span in recording.speechless)]
        for before, after in itertools.pairwise(edges):
            assert (after - before) / SAMPLE_RATE < 2 * STRETCH_S[1] / 0.2
    assert joined(speechless=0).speechless == []


def test_every_utterance_comes_as_often_as_any_other() -> None:
    texts = [one.text for one in joined().spoken]
    counts = [texts.count(one.text) for one in UTTERANCES]
    assert max(counts) - min(counts) <= 1


def test_the_same_seed_gives_the_same_samples() -> None:
    assert np.array_equal(joined().pcm, joined().pcm)
    assert not np.array_equal(joined().pcm[:SAMPLE_RATE], joined(1).pcm[:SAMPLE_RATE])


def test_the_beginning_ends_with_a_whole_utterance() -> None:
    recording = joined()
    beginning = recording.beginning(120)
    assert beginning.spoken == recording.spoken[: len(beginning.spoken)]
    assert beginning.spoken[-1].span.end == len(beginning.pcm) <= 120 * SAMPLE_RATE
    following = recording.spoken[len(beginning.spoken)]
    assert following.span.end > 120 * SAMPLE_RATE
    assert np.array_equal(beginning.pcm, recording.pcm[: len(beginning.pcm)])
    assert all(span.end <= len(beginning.pcm) for span in beginning.speechless)
    assert recording.beginning(0.1).spoken == []


def test_what_fits_no_utterance_is_refused() -> None:
    with pytest.raises(ValueError, match="no utterance fits"):
        joined(minutes=0.001)


def test_a_manifest_tells_speech_its_parts_and_sounds(tmp_path: Path) -> None:
    second = np.repeat(np.array([3000, 9000], np.int16), SAMPLE_RATE)
    for name, pcm in (
        ("speech.wav", second),
        ("parts.wav", second),
        ("music.wav", second),
        ("silence.wav", second * 0),
    ):
        (tmp_path / name).write_bytes(as_wav(pcm))
    parts = [
        {"start": 0.0, "end": 1.0, "text": "One.", "language": "en"},
        {"start": 1.0, "end": 2.0, "text": "Zwei.", "language": "de"},
    ]
    manifest = [
        {"path": "speech.wav", "language": "en", "reference": "All."},
        {"path": "parts.wav", "language": "en", "segments": parts, "kind": "speech"},
        {
            "path": "music.wav",
            "language": None,
            "kind": "music",
            "expected_empty": True,
        },
        {"path": "silence.wav", "kind": "silence", "expected_empty": True},
        {"path": "text.wav", "language": "en", "decodes": False},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    entries = entries_of(tmp_path)
    assert len(entries) == 4
    found = utterances_of([entry for entry in entries if is_speech(entry)])
    assert [(one.text, one.language, len(one.pcm)) for one in found] == [
        ("All.", "en", 2 * SAMPLE_RATE),
        ("One.", "en", SAMPLE_RATE),
        ("Zwei.", "de", SAMPLE_RATE),
    ]
    assert set(found[2].pcm) == {9000}
    [sound] = sounds_of(entries)
    assert np.array_equal(sound, second)
