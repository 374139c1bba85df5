"""Files as callers send them, that are easily decoded wrong: what each has to give.

What the `ffmpeg` program makes of them is kept in `tests/audio/inputs/ffmpeg.npz`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deployments.audio.decode import DecodedAudio, decode_audio
from deployments.contract.errors import InvalidRequestError
from tests.audio.test_decode import excerpts

FOLDER = Path(__file__).parent / "inputs"
SPEECH = FOLDER.parent / "jfk.flac"

# PyAV 19 brings an FFmpeg that cuts off the encoder's padding at the end of MP4 files, up to so
# many samples; the FFmpeg of the reference keeps them.
PADDING = 200

EARLIER = "; what follows comes that much earlier than in the file"

# The file, what the request chooses, and the warnings.
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("call.ogg", {}, []),
    ("call.ogg", {"channel": 0}, []),
    ("call.ogg", {"channel": 1}, []),
    ("crafted.dss", {}, []),
    (
        "gap.mkv",
        {},
        [
            f"The file's clock jumps ahead by 3.97 s at 3.03 s; the gap was left out{EARLIER}"
        ],
    ),
    (
        "inv.flac",
        {},
        [
            "The channels cancel each other out when they are mixed;"
            + " audio_channel 0 takes one of them alone"
        ],
    ),
    ("inv.flac", {"channel": 0}, []),
    ("late.ogg", {}, []),
    ("offset.mp4", {}, []),
    (
        "silentfirst.mkv",
        {},
        [
            "The audio track is silent, and the file has other audio tracks:"
            + " audio_track 1"
        ],
    ),
    ("silentfirst.mkv", {"track": 1}, []),
    ("two.mkv", {}, []),
    ("two.mkv", {"track": "por"}, []),
    (
        "zeromid.m4a",
        {},
        [f"Damaged packets were left out: 35 at 4.42 s (13798 bytes, 2.24 s){EARLIER}"],
    ),
]


def decoded(name: str, **chosen: Any) -> DecodedAudio:
    with (FOLDER / name).open("rb") as file:
        return decode_audio(file, 3600, **chosen)


def likeness(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """1 for the same sound, 0 for another; one or two samples of delay do not count."""
    found = []
    for lag in (-2, -1, 0, 1, 2):
        shifted = one[2 + lag : len(one) - 2 + lag].astype(float)
        found.append(np.corrcoef(shifted, other[2:-2].astype(float))[0, 1])
    return float(max(found))


@pytest.mark.parametrize(("name", "chosen", "warnings"), CASES)
def test_a_file_gives_what_the_ffmpeg_program_gives_and_tells_what_is_odd(
    name: str, chosen: dict[str, Any], warnings: list[str]
) -> None:
    audio = decoded(name, **chosen)
    assert audio.warnings == warnings
    with np.load(FOLDER / "ffmpeg.npz") as reference:
        key = " ".join([name, *map(str, chosen.values())])
        expected, length = reference[key], int(reference[f"{key} samples"])
    lacking = length - len(audio.samples)
    assert 0 <= lacking <= (PADDING if name.endswith(("mp4", "m4a")) else 0)
    found = excerpts(np.pad(audio.samples, (0, lacking)))
    # What was cut off lies in the last excerpt.
    compared = slice(None, -1 if lacking else None)
    difference = found[compared].astype(int) - expected[compared]
    assert np.abs(difference).max() <= 8


@pytest.mark.parametrize("name", ["chained.ogg", "chained_stereo.opus"])
def test_a_chained_file_is_decoded_to_its_end_although_its_parts_differ(
    name: str,
) -> None:
    audio = decoded(name)
    with SPEECH.open("rb") as file:
        speech = decode_audio(file, 3600).samples
    assert len(audio.samples) == len(speech) == 176_000
    for part in slice(2_000, 78_000), slice(82_000, 174_000):
        assert likeness(audio.samples[part], speech[part]) > 0.99
    assert audio.warnings == []


def test_sixty_channels_give_their_mean() -> None:
    audio = decoded("ch60.wav")
    samples = np.frombuffer((FOLDER / "ch60.wav").read_bytes()[44:], np.int16)
    mean = samples.reshape(-1, 60).mean(axis=1)
    # From 8 to 16 kHz; every second sample is one of the file.
    assert len(audio.samples) == 2 * len(mean)
    assert np.abs(audio.samples[::2] - mean).max() <= 2
    assert audio.warnings == []


def test_audio_that_starts_later_than_the_video_tells_by_how_much() -> None:
    assert decoded("offset.mp4").start_s == pytest.approx(4.936)
    assert decoded("two.mkv").start_s == 0
    assert decoded("late.ogg").start_s == 0


@pytest.mark.parametrize(
    "track", [1, "por", "pt", "pt-BR", "PT_br", "Portuguese"], ids=str
)
def test_a_track_is_chosen_by_number_or_language(track: int | str) -> None:
    second = decoded("two.mkv", track=track).samples
    assert len(second) < 80_000 < len(decoded("two.mkv").samples)


@pytest.mark.parametrize("track", [2, "deu", "xx", "nonsense"])
def test_a_track_that_is_not_there_is_refused_with_those_that_are(
    track: int | str,
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decoded("two.mkv", track=track)
    assert str(caught.value) == (
        f"Invalid audio_track: the file has no audio track {track}."
        " Its audio tracks: 0 (1 channel, en), 1 (1 channel, pt)"
    )


@pytest.mark.parametrize(
    ("name", "has"),
    [("call.ogg", "Its channels: 0 to 1"), ("late.ogg", "It has only 0")],
)
def test_a_channel_that_is_not_there_is_refused_with_those_that_are(
    name: str, has: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decoded(name, channel=2)
    assert str(caught.value) == (
        f"Invalid audio_channel: the audio track has no channel 2. {has}"
    )


def test_every_input_has_a_test() -> None:
    tested = {name for name, _, _ in CASES}
    tested |= {"ch60.wav", "chained.ogg", "chained_stereo.opus", "ffmpeg.npz"}
    assert {path.name for path in FOLDER.iterdir()} == tested
