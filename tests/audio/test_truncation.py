"""Whole files are never told to be cut, and cut files always are, if their format can tell."""

import io
import struct
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio
from tests.audio.test_decode import HOUR, Samples, encode, halved, recording, tone, wav

# Telephone audio, so that long files are small: bytes a second.
PHONE_RATE = 8_000


def warnings_of(data: bytes) -> list[str]:
    return decode_audio(io.BytesIO(data), HOUR).warnings


def encoded(container: str, codec: str, samples: Samples, **options: str) -> bytes:
    """Mono audio at 16 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        if codec == "libmp3lame":
            # The variable bit rate of `lame -V2`.
            stream.options = {"global_quality": "236", "flags": "+qscale"}
        assert isinstance(stream, av.AudioStream)
        for start in range(0, len(samples), SAMPLE_RATE):
            second = samples[start : start + SAMPLE_RATE][None]
            frame = av.AudioFrame.from_ndarray(second, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            frame.time_base = Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def tagged(data: bytes) -> bytes:
    """The file behind an ID3 tag with a cover picture of an eighth of its size."""
    picture = b"\0image/png\0\3\0" + bytes(len(data) // 8)
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + data


def au(seconds: float, missing_s: float) -> bytes:
    """An AU file of A-law that declares so many seconds, and lacks some at its end."""
    declared = round(seconds * PHONE_RATE)
    head = struct.pack(">4s5I", b".snd", 24, declared, 27, PHONE_RATE, 1)
    there = declared - round(missing_s * PHONE_RATE)
    return head + np.resize(np.arange(256, dtype=np.uint8), there).tobytes()


@pytest.mark.parametrize("tag", [bytes, tagged], ids=["plain", "tagged"])
@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("adts", "aac", {}),
        ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    ],
)
def test_a_whole_file_whose_length_ffmpeg_guesses_has_no_warning(
    container: str, codec: str, options: dict[str, str], tag: type[bytes]
) -> None:
    # FFmpeg guesses from the first frames, which are the smallest here.
    quiet_first = np.concatenate([np.zeros(20 * SAMPLE_RATE, np.int16), tone(440, 4)])
    assert warnings_of(tag(encoded(container, codec, quiet_first, **options))) == []


@pytest.mark.parametrize("excess", [2, 8, 44, 1000])
def test_a_wav_header_that_counts_a_few_bytes_too_many_needs_no_warning(
    excess: int,
) -> None:
    data = bytearray(wav(tone(440)))
    data[40:44] = struct.pack("<I", 2 * SAMPLE_RATE + excess)
    assert warnings_of(bytes(data)) == []


@pytest.mark.parametrize(
    ("seconds", "missing_s", "cut"),
    [
        (20, 0.3, False),
        (20, 0.7, True),
        (200, 1.5, True),
        (2_000, 1.0, False),
        (2_000, 3.0, True),
        (3_500, 2.5, True),
    ],
)
def test_no_more_than_a_few_words_go_missing_from_a_recording_of_any_length(
    seconds: float, missing_s: float, cut: bool
) -> None:
    warnings = warnings_of(au(seconds, missing_s))
    assert [f"holds {seconds:.2f} s" in text for text in warnings] == [True] * cut


def test_an_mp3_that_lacks_its_last_hundredth_is_not_taken_for_a_guess() -> None:
    whole = encoded("mp3", "libmp3lame", tone(440, 100))
    assert warnings_of(whole) == []
    [warning] = warnings_of(whole[: len(whole) * 99 // 100])
    assert "it was cut" in warning


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s24le"),
        ("w64", "pcm_s16le"),
        ("caf", "pcm_s16le"),
        ("sox", "pcm_s32le"),
        ("avi", "pcm_s16le"),
        ("aiff", "pcm_s16be"),
        ("au", "pcm_s16be"),
        ("tta", "tta"),
    ],
)
def test_a_format_that_declares_its_size_tells_that_it_was_cut(
    container: str, codec: str
) -> None:
    whole = encoded(container, codec, tone(440, 4))
    assert warnings_of(whole) == []
    assert any("was cut" in text for text in warnings_of(halved(whole)))


def test_a_cut_rf64_file_tells_so() -> None:
    whole = encoded("wav", "pcm_s16le", tone(440, 4), rf64="always")
    assert whole[:4] == b"RF64"
    assert warnings_of(whole) == []
    assert any("was cut" in text for text in warnings_of(halved(whole)))


@pytest.mark.parametrize(
    ("container", "place", "unknown"),
    [
        ("avi", 4, struct.pack("<I", 0)),
        ("avi", 4, struct.pack("<I", 0xFFFFFFFF)),
        ("caf", None, struct.pack(">q", -1)),
        ("sox", 8, bytes(8)),
    ],
)
def test_a_file_that_declares_no_size_is_whole(
    container: str, place: int | None, unknown: bytes
) -> None:
    codec = "pcm_s32le" if container == "sox" else "pcm_s16le"
    data = bytearray(encoded(container, codec, tone(440, 2)))
    start = data.index(b"data") + 4 if place is None else place
    data[start : start + len(unknown)] = unknown
    assert warnings_of(bytes(data)) == []


def test_the_few_bytes_that_end_a_file_of_some_formats_are_not_told() -> None:
    for container, codec, rate in [
        ("wsaud", "adpcm_ima_ws", 16_000),
        ("mpeg", "mp2", 48_000),
    ]:
        data = encode(container, codec, 440, rate=rate, layouts=("mono",))
        assert warnings_of(data) == []
    assert warnings_of(wav(tone(440)) + bytes(16)) == []


@pytest.mark.parametrize("name", ["jfk.mp3", "sonnet.aac", "jfk.flac"])
def test_real_recordings_with_a_tag_in_front_of_them_have_no_warning(name: str) -> None:
    assert warnings_of(tagged(recording(name))) == []


@pytest.mark.parametrize("sample_bytes", [1, 2, 3, 4])
def test_a_wav_file_cut_in_any_width_of_sample_tells_how_much_it_holds(
    sample_bytes: int,
) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(sample_bytes)
        writer.setframerate(SAMPLE_RATE)
        noise = np.random.default_rng(0).bytes(2 * sample_bytes * SAMPLE_RATE * 2)
        writer.writeframes(noise)
    [warning] = warnings_of(file.getvalue()[: len(noise) * 3 // 4])
    assert warning.startswith("The file says that it holds 2.00 s of audio")
