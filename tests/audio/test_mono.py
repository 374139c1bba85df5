"""Any number of channels becomes one, in bounded memory."""

import io
import struct
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import DecodedAudio, decode_audio
from tests.audio.test_decode import encode, pitch, tone

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def wav_of(channels: npt.NDArray[np.int16]) -> bytes:
    """A WAV file without a channel layout; channels: shape (samples, channels)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(channels.astype("<i2").tobytes())
    return file.getvalue()


def noise(channels: int, samples: int = 2_000) -> npt.NDArray[np.int16]:
    return RNG.integers(-3_000, 3_000, (samples, channels), dtype=np.int16)


def decoded(data: bytes, **chosen: Any) -> DecodedAudio:
    return decode_audio(io.BytesIO(data), 3600, **chosen)


@pytest.mark.parametrize("count", [9, 11, 13, 17, 60, 65, 256, 512])
def test_channels_without_a_known_layout_give_their_mean(count: int) -> None:
    channels = noise(count)
    audio = decoded(wav_of(channels))
    assert np.abs(audio.samples - channels.mean(axis=1)).max() <= 1
    assert audio.warnings == []


# (left, right, centre, ...) of FFmpeg's usual layouts for so many channels: what the `ffmpeg`
# program gives for one channel at a time, as parts of a thousand.
@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (2, [500, 500]),
        (6, [207, 207, 293, 0, 146, 146]),
    ],
)
def test_channels_of_a_known_layout_are_mixed_as_the_ffmpeg_program_mixes(
    count: int, parts: list[int]
) -> None:
    for number, part in enumerate(parts):
        channels = np.zeros((SAMPLE_RATE, count), dtype=np.int16)
        channels[:, number] = 10_000
        found = decoded(wav_of(channels)).samples[8_000]
        assert found == pytest.approx(10 * part, abs=10)


@pytest.mark.parametrize("count", [2, 6, 60, 256])
def test_one_channel_is_taken_alone(count: int) -> None:
    channels = noise(count)
    for number in (0, count - 1):
        audio = decoded(wav_of(channels), channel=number)
        assert np.array_equal(audio.samples, channels[:, number])


@pytest.mark.parametrize(
    "codec", ["pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_s64le"]
)
def test_one_channel_is_taken_of_any_sample_format(codec: str) -> None:
    data = encode("nut", codec, 440)
    stereo = encode("nut", codec, 440, layouts=("stereo",))
    mono = decoded(data).samples
    for number in (0, 1):
        taken = decoded(stereo, channel=number).samples
        assert np.abs(taken.astype(int) - mono).max() <= 2


def test_one_channel_is_taken_of_planar_samples() -> None:
    stereo = encode("matroska", "libopus", 440, layouts=("stereo",))
    assert pitch(decoded(stereo, channel=1).samples) == pytest.approx(440, abs=2)


def test_opposite_channels_are_told_and_others_are_not() -> None:
    sound = tone(440)
    opposite = decoded(wav_of(np.stack([sound, -sound], axis=1)))
    assert not opposite.samples.any()
    assert opposite.warnings == [
        "The channels cancel each other out when they are mixed;"
        + " audio_channel 0 takes one of them alone"
    ]
    silent = np.zeros_like(sound)
    for one, other in ((sound, silent), (sound, sound), (sound, tone(880))):
        assert decoded(wav_of(np.stack([one, other], axis=1))).warnings == []
    many = np.zeros((2_000, 256), dtype=np.int16)
    many[:, 7] = sound[:2_000]
    assert not any("cancel" in text for text in decoded(wav_of(many)).warnings)
    assert decoded(wav_of(np.stack([sound, -sound], axis=1)), channel=1).warnings == []


def test_a_later_part_without_the_channel_counts_as_silence_and_is_told() -> None:
    stereo = encode("ogg", "libopus", 440, layouts=("stereo",))
    mono = encode("ogg", "libopus", 880, layouts=("mono",))
    audio = decoded(stereo + mono, channel=1)
    assert len(audio.samples) == pytest.approx(2 * SAMPLE_RATE, abs=500)
    assert not audio.samples[-SAMPLE_RATE // 2 :].any()
    [warning] = audio.warnings
    assert warning == (
        "A later part of the recording has no channel 1 and counts as silence"
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("number", [np.inf, np.nan, 1e308])
def test_numbers_that_are_no_sound_do_no_harm(count: int, number: float) -> None:
    header = bytearray(wav_of(np.zeros((1_000, count), dtype=np.int16))[:44])
    samples = np.full((1_000, count), number, dtype="<f8")
    samples[::2] *= -1
    header[20:22] = (3).to_bytes(2, "little")  # floats
    header[28:36] = struct.pack("<IHH", 128_000 * count, 8 * count, 64)
    header[40:44] = struct.pack("<I", samples.nbytes)
    audio = decoded(bytes(header) + samples.tobytes())
    assert len(audio.samples) == 1_000
    assert len(audio.warnings) <= 1


def test_many_channels_need_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "many.wav"
    file.write_bytes(wav_of(noise(256, 2 * SAMPLE_RATE)))  # 16 MB
    script = (
        "import resource, sys; from deployments.audio.decode import decode_audio\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); audio = decode_audio(open(sys.argv[1], 'rb'), 60)\n"
        "print(len(audio.samples), peak() - before)"
    )
    command = [sys.executable, "-c", script, str(file)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    samples, mebibytes = map(int, output.split())
    assert samples == 2 * SAMPLE_RATE
    assert mebibytes < 40


def test_pyav_still_gives_a_plane_by_its_number() -> None:
    # `channel_blocks` makes planes by themselves, as `AudioFrame.planes` does.
    frame = av.AudioFrame(format="s16p", layout="stereo", samples=4)
    second = av.audio.plane.AudioPlane(frame, 1)
    second.update(np.arange(4, dtype=np.int16).tobytes())
    assert frame.to_ndarray()[1].tolist() == [0, 1, 2, 3]
