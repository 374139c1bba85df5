"""What is missing from a recording is told: where, and how much."""

import errno
import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deployments.audio import SAMPLE_RATE, decode
from deployments.audio.containers import PacketReader
from deployments.audio.decode import DecodedAudio, decode_audio
from tests.audio.test_decode import (
    HOUR,
    RECORDINGS,
    encode,
    halved,
    pitch,
    recording,
    tone,
    wav,
)

EARLIER = "what follows comes that much earlier than in the file"


def decoded(data: bytes) -> DecodedAudio:
    return decode_audio(io.BytesIO(data), HOUR)


def zeroed(data: bytes) -> bytes:
    """The file with a fifth of its bytes, in its middle, as zeros."""
    start, end = len(data) * 2 // 5, len(data) * 3 // 5
    return data[:start] + bytes(end - start) + data[end:]


@pytest.mark.parametrize("name", [entry["file"] for entry in RECORDINGS])
def test_a_whole_recording_has_no_warning_but_that_it_is_silent(name: str) -> None:
    warnings = decoded(recording(name)).warnings
    if name == "silence.wav":
        [warning] = warnings
        assert warning.startswith("The recording is silent")
    else:
        assert warnings == []


@pytest.mark.parametrize(
    "name", ["jfk.flac", "jfk.mp3", "gettysburg.wav", "sonnet.ogg", "sonnet.webm"]
)
def test_a_file_that_was_cut_tells_that_its_end_is_missing(name: str) -> None:
    audio = decoded(halved(recording(name)))
    seconds = len(audio.samples) / SAMPLE_RATE
    warning = audio.warnings[-1]
    assert "was cut" in warning and "of audio" in warning
    told = [float(word) for word in warning.split() if word[0].isdigit()]
    assert told[-1] == pytest.approx(seconds, abs=0.1)


def test_a_cut_file_whose_index_stands_first_tells_so(tmp_path: Path) -> None:
    file = tmp_path / "audio.mp4"
    with av.open(
        str(file), "w", format="mp4", options={"movflags": "faststart"}
    ) as output:
        stream = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        for start in range(0, 4 * SAMPLE_RATE, 1024):
            samples = tone(440, 4)[start : start + 1024][None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            frame.time_base = Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    whole = file.read_bytes()
    assert decoded(whole).warnings == []
    assert any("it was cut" in text for text in decoded(halved(whole)).warnings)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_file_from_a_pipe_that_declares_no_size_is_whole(size: int) -> None:
    data = bytearray(wav(tone(440)))
    data[40:44] = struct.pack("<I", size)
    audio = decoded(bytes(data))
    if len(audio.samples):
        assert audio.warnings == []


@pytest.mark.parametrize(
    "name", ["jfk.mp3", "sonnet.aac", "sonnet.ogg", "jfk.flac", "sonnet.webm"]
)
def test_a_zeroed_middle_is_told(name: str) -> None:
    data = recording(name)
    audio = decoded(zeroed(data))
    assert 0 < len(audio.samples) < 0.95 * len(decoded(data).samples)
    assert audio.warnings


def test_what_stands_behind_the_recording_is_told() -> None:
    first, second = wav(tone(440)), wav(tone(880))
    [warning] = decoded(first + second).warnings
    assert warning == (
        f"{len(second)} bytes of the file at 1.00 s of the audio could not be read"
        " and were left out"
    )


def with_times(times: list[float]) -> bytes:
    """A Matroska file whose packets, of 0.1 s each, have these times in seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for time in times:
            packet = av.Packet(tone(440, 0.1).tobytes())
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * time)
            output.mux(packet)
    return file.getvalue()


def test_jumps_of_the_clock_are_told_together() -> None:
    times = np.arange(30) / 10
    times[10:] += 2
    times[20:] += 3
    [warning] = decoded(with_times(list(times))).warnings
    assert warning == (
        "The file's clock jumps ahead by 5.00 s between 1.00 s and 2.00 s;"
        f" the gap was left out; {EARLIER}"
    )


def test_small_gaps_count_once_they_add_up() -> None:
    unsteady = [number / 10 + 0.02 * (number % 2) for number in range(30)]
    assert decoded(with_times(unsteady)).warnings == []
    slow = [number * 0.12 for number in range(60)]
    [warning] = decoded(with_times(slow)).warnings
    assert "clock jumps ahead by 1." in warning


def test_an_empty_packet_in_mid_file_does_not_end_the_decoding() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for number in range(20):
            packet = av.Packet(b"" if number == 10 else tone(440, 0.1).tobytes())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = number
            output.mux(packet)
    audio = decoded(file.getvalue())
    assert len(audio.samples) == 19 * SAMPLE_RATE // 10
    assert audio.warnings == []


def chain(*parts: bytes) -> bytes:
    return b"".join(parts)


def test_a_chain_of_ogg_files_of_any_codec_is_decoded_to_its_end() -> None:
    mono = ("mono",)
    audio = decoded(
        chain(
            encode("ogg", "flac", 440, rate=48_000, layouts=mono),
            encode("ogg", "libopus", 880, rate=48_000, layouts=("stereo",)),
            encode("ogg", "flac", 660, rate=44_100, layouts=("stereo",)),
        )
    )
    parts = np.array_split(audio.samples, 3)
    assert len(audio.samples) == pytest.approx(3 * SAMPLE_RATE, abs=2_000)
    for part, hertz in zip(parts, (440, 880, 660), strict=True):
        assert pitch(part[2_000:-2_000]) == pytest.approx(hertz, abs=3)


def test_a_part_of_a_chain_that_cannot_be_read_is_told_and_passed_over() -> None:
    mono, stereo = (
        encode("ogg", "libopus", 440, layouts=("mono",)),
        encode("ogg", "libopus", 880, layouts=("stereo",)),
    )
    broken = stereo.replace(b"OpusHead", b"SomeHead")
    audio = decoded(chain(mono, broken, mono))
    assert len(audio.samples) == pytest.approx(2 * SAMPLE_RATE, abs=500)
    assert audio.warnings


def test_a_chain_of_many_parts_keeps_to_the_limit() -> None:
    mono, stereo = (
        encode("ogg", "libopus", 440, layouts=("mono",)),
        encode("ogg", "libopus", 880, layouts=("stereo",)),
    )
    with pytest.raises(Exception, match="longer than the limit"):
        decode_audio(io.BytesIO(chain(mono, stereo) * 3), 5)


def test_the_warnings_of_a_file_that_is_damaged_all_over_are_few_and_short() -> None:
    data = bytearray(recording("jfk.mp4"))
    harm = np.random.default_rng(0)
    for start in harm.integers(4_000, len(data) - 20_000, 400):
        data[start : start + 20] = harm.bytes(20)
    warnings = decoded(bytes(data)).warnings
    assert 0 < len(warnings) <= 6
    assert all(len(text) < 250 for text in warnings)


class Hesitant:
    """A container whose demuxer asks to be called again, as some do behind other streams' data."""

    def __init__(self, container: av.container.InputContainer, times: int) -> None:
        self.container = container
        self.times = times

    def demux(self, stream: av.AudioStream) -> Any:
        if self.times:
            self.times -= 1
            raise av.error.BlockingIOError(errno.EAGAIN, "try again")
        return self.container.demux(stream)


@pytest.mark.parametrize(("times", "packets"), [(3, 12), (10**9, 0)])
def test_a_demuxer_that_asks_to_be_called_again_is_called_but_not_for_ever(
    times: int, packets: int
) -> None:
    with av.open(io.BytesIO(wav(tone(440))), "r") as container:
        hesitant: Any = Hesitant(container, times)
        reader = PacketReader(hesitant, container.streams.audio[0])
        assert abs(len(list(reader)) - packets) <= 4
        assert reader.stopped == (packets == 0)


class Placeless:
    """A container whose packets do not tell where they come from, as those of Monkey's Audio."""

    def __init__(self, packets: int) -> None:
        self.packets = packets

    def demux(self, stream: av.AudioStream) -> Any:
        return [av.Packet(b"audio") for _ in range(self.packets)]


def test_packets_without_a_place_do_not_pretend_that_bytes_were_left_behind_them() -> (
    None
):
    with av.open(io.BytesIO(wav(tone(440))), "r") as container:
        placeless: Any = Placeless(3)
        reader = PacketReader(placeless, container.streams.audio[0])
        assert len(list(reader)) == 3
        assert (reader.begin, reader.position, reader.end) == (0, 0, 0)


def test_a_chain_of_too_many_parts_is_left_after_the_last_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mono, stereo = (
        encode("ogg", "libopus", 440, layouts=("mono",)),
        encode("ogg", "libopus", 880, layouts=("stereo",)),
    )
    monkeypatch.setattr(decode, "_MOST_PARTS", 2)
    assert decoded(chain(mono, stereo)).warnings == []
    audio = decoded(chain(mono, stereo, mono, stereo))
    assert len(audio.samples) == pytest.approx(2 * SAMPLE_RATE, abs=500)
    [warning] = audio.warnings
    assert warning.startswith(
        f"The file is joined from too many parts; the last {len(mono + stereo)} bytes,"
    )


def ogg_page(flags: int, serial: int) -> bytes:
    """A page of ten bytes that mean nothing."""
    head = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, serial, 0, 0)
    return head + bytes([1, 10]) + b"x" * 10


def in_language(layout: str, language: str | None) -> bytes:
    """A second of Ogg Opus with or without a language tag."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as output:
        stream = output.add_stream("libopus", rate=48_000, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if language is not None:
            stream.metadata["language"] = language
        channels = 2 if layout == "stereo" else 1
        samples = np.repeat(tone(440, rate=48_000), channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_a_track_that_was_chosen_by_language_goes_on_in_parts_that_name_none() -> None:
    data = chain(in_language("mono", "por"), in_language("stereo", None))
    audio = decode_audio(io.BytesIO(data), HOUR, track="pt")
    assert len(audio.samples) == pytest.approx(2 * SAMPLE_RATE, abs=500)
    assert audio.warnings == []


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("por", ["português", "Brazilian Portuguese", "pt"]),
        ("ger", ["Deutsch", "german", "de-AT"]),
        ("nob", ["no", "nb", "norsk bokmål"]),
        ("fil", ["tl", "Filipino"]),
        ("tlh", ["tlh", "tlh-Latn"]),
    ],
)
def test_a_track_is_named_as_the_option_language_names_a_language(
    tag: str, names: list[str]
) -> None:
    data = in_language("mono", tag)
    for name in names:
        audio = decode_audio(io.BytesIO(data), HOUR, track=name)
        assert len(audio.samples) > 0


def test_a_silent_channel_is_not_told_to_be_a_silent_recording() -> None:
    left = np.stack([tone(440), np.zeros(SAMPLE_RATE, np.int16)], axis=1)
    stereo = bytearray(wav(left.reshape(-1)))
    stereo[22:24], stereo[32:34] = struct.pack("<H", 2), struct.pack("<H", 4)
    stereo[28:32] = struct.pack("<I", 4 * SAMPLE_RATE)
    assert decode_audio(io.BytesIO(stereo), HOUR, channel=0).warnings == []
    assert decode_audio(io.BytesIO(stereo), HOUR, channel=1).warnings == [
        "Channel 1 is silent; audio_channel null mixes all channels"
    ]
