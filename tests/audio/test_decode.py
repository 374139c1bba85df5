"""Decoding real recordings and hostile files. What the `ffmpeg` program makes of the recordings is
kept in `tests/audio/ffmpeg.npz`.
"""

import contextlib
import io
import json
import struct
import subprocess
import sys
import threading
import wave
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.audio import SAMPLE_RATE
from deployments.audio.containers import FileFrom
from deployments.audio.decode import decode_audio
from deployments.audio.demuxers import DEMUXERS
from deployments.contract.errors import InvalidAudioError

FOLDER = Path(__file__).parent
RECORDINGS: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())
HOUR = 3600.0

Samples = npt.NDArray[np.int16]


def decode(data: bytes, max_seconds: float = HOUR) -> Samples:
    return decode_audio(io.BytesIO(data), max_seconds).samples


# Samples of the encoder's padding at the end of two MP4 files. PyAV 19 brings an FFmpeg that cuts
# them off, as the files' edit lists say; the FFmpeg of the reference keeps them.
CUT_OFF = (
    {"jfk.mp4": 100, "veneno.m4a": 150}
    if int(av.__version__.split(".")[0]) >= 19
    else {}
)


def refusal(data: bytes, max_seconds: float = HOUR) -> str:
    with pytest.raises(InvalidAudioError) as caught:
        decode(data, max_seconds)
    return str(caught.value)


def recording(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def excerpts(samples: Samples) -> Samples:
    """64 stretches of 64 samples, evenly spaced from first to last: shape (64, 64)."""
    starts = np.linspace(0, len(samples) - 64, 64).astype(int)
    return np.stack([samples[start : start + 64] for start in starts])


def largest_difference(one: Samples, other: Samples) -> int:
    return int(np.abs(one.astype(np.int32) - other).max())


def tone(hertz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> Samples:
    time = np.arange(round(seconds * rate)) / rate
    return (12_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def pitch(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(spectrum.argmax() * SAMPLE_RATE / len(samples))


def wav(samples: Samples, rate: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(samples.tobytes())
    data = bytearray(file.getvalue())
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


def encode(
    container: str,
    codec: str,
    *tones: float,
    rate: int = 48_000,
    layouts: tuple[str, ...] = ("mono", "mono"),
    default: int | None = None,
) -> bytes:
    """One audio stream of one second for each tone.

    default: number of the stream that is marked as default
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams: list[av.AudioStream] = []
        for layout in layouts[: len(tones)]:
            stream = output.add_stream(codec, rate=rate, layout=layout)
            assert isinstance(stream, av.AudioStream)
            stream.disposition = av.stream.Disposition(len(streams) == default)
            streams.append(stream)
        for stream, hertz, layout in zip(streams, tones, layouts, strict=False):
            channels = 2 if layout == "stereo" else 1
            samples = np.repeat(tone(hertz, rate=rate), channels)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("entry", RECORDINGS, ids=lambda entry: entry["file"])
def test_every_recording_decodes_as_the_ffmpeg_program_does(
    entry: dict[str, Any],
) -> None:
    samples = decode(recording(entry["file"]))
    cut = CUT_OFF.get(entry["file"], 0)
    assert samples.dtype == np.int16
    assert samples.shape == (entry["samples"] - cut,)
    with np.load(FOLDER / "ffmpeg.npz") as reference:
        expected = reference[entry["file"]]
    # What was cut off lies in the last excerpt.
    compared = slice(None, -1 if cut else None)
    found = excerpts(np.pad(samples, (0, cut)))
    assert largest_difference(found[compared], expected[compared]) <= 2


def test_the_manifest_lists_every_recording_of_the_folder() -> None:
    others = {"README.md", "manifest.json", "ffmpeg.npz", "official.json"}
    files = {path for path in FOLDER.iterdir() if path.is_file()}
    names = {path.name for path in files if path.suffix != ".py"} - others
    assert names == {entry["file"] for entry in RECORDINGS}


def test_a_waveform_that_is_already_right_passes_unchanged() -> None:
    samples = tone(440)
    assert np.array_equal(decode(wav(samples)), samples)


@pytest.mark.parametrize("start", [0, 10])
def test_a_place_that_no_file_has_is_an_error_of_ffmpegs_and_no_exception(
    start: int, tmp_path: Path
) -> None:
    """Damaged files send their demuxers there, and what can be read of them is read."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        source = FileFrom(file, start)
        assert source.seek(50) == 50
        for offset, whence in ((-1, 0), (-1 << 40, 0), (-1 << 40, 1), (-1 << 40, 2)):
            assert source.seek(offset, whence) < 0
        assert source.tell() == 50
        assert len(source.read()) == 50 - start


def test_the_file_stays_open_for_its_owner() -> None:
    file = io.BytesIO(recording("jfk.mp3"))
    decode_audio(file, HOUR)
    assert not file.closed


def test_a_change_of_sample_rate_and_layout_within_the_stream_is_followed() -> None:
    high = encode("adts", "aac", 440, rate=48_000, layouts=("stereo",))
    low = encode("adts", "aac", 880, rate=SAMPLE_RATE)
    samples = decode(high + low + high)
    # FFmpeg 5.1's count: whole AAC frames, less what is in the resampler when it is replaced.
    assert len(samples) == 50_160
    parts = samples[2_000:14_000], samples[18_500:30_500], samples[36_000:48_000]
    assert [pitch(part) for part in parts] == pytest.approx([440, 880, 440], abs=2)


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(data: bytes) -> bytes:
    start = len(data) // 2
    holes = bytearray(data)
    holes[start : start + 2_000 : 3] = bytes(667)
    return bytes(holes)


@pytest.mark.parametrize("harm", [halved, damaged], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize(
    "entry",
    [entry for entry in RECORDINGS if "samples_halved" in entry],
    ids=lambda entry: entry["file"],
)
def test_a_cut_or_damaged_file_gives_what_the_ffmpeg_program_saves(
    entry: dict[str, Any], harm: Callable[[bytes], bytes]
) -> None:
    samples = decode(harm(recording(entry["file"])))
    assert len(samples) == entry[f"samples_{harm.__name__}"]
    with np.load(FOLDER / "ffmpeg.npz") as reference:
        expected = reference[f"{entry['file']} {harm.__name__}"]
    assert largest_difference(excerpts(samples), expected) <= 2


@pytest.mark.parametrize("name", ["veneno.m4a", "jfk.mp4"])
def test_a_cut_file_whose_index_was_at_the_end_is_refused(name: str) -> None:
    assert "damaged" in refusal(halved(recording(name)))


def test_of_two_equal_audio_streams_the_first_is_taken() -> None:
    assert pitch(decode(encode("mov", "aac", 440, 880))) == pytest.approx(440, abs=2)


def test_of_two_audio_streams_the_one_of_more_channels_is_taken() -> None:
    data = encode("mpegts", "aac", 440, 880, layouts=("mono", "stereo"))
    assert pitch(decode(data)) == pytest.approx(880, abs=2)


def test_of_two_audio_streams_the_default_one_is_taken() -> None:
    data = encode("matroska", "aac", 440, 880, layouts=("stereo", "mono"), default=1)
    assert pitch(decode(data)) == pytest.approx(880, abs=2)


def test_tags_in_an_unknown_encoding_do_no_harm() -> None:
    title = b"INFOINAM" + struct.pack("<I", 8) + b"Caf\xe9 \xff\xfe\0"
    tagged = bytearray(wav(tone(440)))
    tagged += b"LIST" + struct.pack("<I", len(title)) + title
    tagged[4:8] = struct.pack("<I", len(tagged) - 8)
    assert len(decode(bytes(tagged))) == SAMPLE_RATE


def test_a_cover_picture_is_never_unpacked(tmp_path: Path) -> None:
    picture = b"\0image/png\0\x03\0" + blank_png(9_000)
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    file = tmp_path / "covered.mp3"
    file.write_bytes(b"ID3\3\0\0" + size + frame + recording("jfk.mp3"))
    script = (
        "import resource, sys; from deployments.audio.decode import decode_audio\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); samples = decode_audio(open(sys.argv[1], 'rb'), 60).samples\n"
        "print(len(samples), peak() - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        cwd=FOLDER.parent.parent,
        capture_output=True,
        check=True,
    ).stdout
    samples, mebibytes = map(int, output.split())
    assert samples == 11 * SAMPLE_RATE
    assert mebibytes < 50


def blank_png(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 3 * side) * side), 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"RIFF", bytes(5_000), b"<html>not found</html>", b"ID3" * 99],
    ids=["nothing", "one byte", "magic only", "zeros", "a web page", "almost mp3"],
)
def test_a_file_that_is_no_recording_is_refused(data: bytes) -> None:
    assert refusal(data).startswith("Audio decoding failed: the file ")


def test_random_bytes_are_refused() -> None:
    refusal(np.random.default_rng(0).bytes(100_000))


def test_a_video_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    assert "no audio stream" in refusal(file.getvalue())


def test_a_recording_without_samples_is_refused() -> None:
    empty = np.zeros(0, dtype=np.int16)
    assert refusal(wav(empty)).endswith("the file holds no audio that can be decoded")


def test_a_recording_exactly_as_long_as_the_limit_is_accepted() -> None:
    assert len(decode(recording("jfk.flac"), max_seconds=11)) == 11 * SAMPLE_RATE


def test_a_recording_longer_than_the_limit_is_refused() -> None:
    text = refusal(recording("jfk.flac"), max_seconds=10)
    assert text.endswith("longer than the limit of 0:00:10 (max_audio_s: 10)")


def test_a_recording_longer_than_the_limit_is_not_decoded_to_its_end() -> None:
    file = io.BytesIO(wav(np.zeros(600 * SAMPLE_RATE, dtype=np.int16)))
    with pytest.raises(InvalidAudioError):
        decode_audio(file, max_seconds=2)
    assert file.tell() < 10 * SAMPLE_RATE


def test_a_false_sample_rate_does_not_inflate_a_small_file() -> None:
    assert "longer than" in refusal(wav(tone(440), rate=1), max_seconds=60)
    assert "not plausible" in refusal(wav(tone(440), rate=1_744_846_464))


def test_errors_and_logs_reveal_nothing_of_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret-name.mp4"
    path.write_bytes(recording("jfk.mp4")[:50_000])
    with path.open("rb") as file, pytest.raises(InvalidAudioError) as caught:
        decode_audio(file, HOUR)
    decode(recording("jfk.flac")[:500_000])
    text = str(caught.value)
    assert "secret-name" not in text and "Errno" not in text
    assert caught.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


class CountingServer(ThreadingHTTPServer):
    """Serves one recording at every path and counts who asks for it."""

    def __init__(self, body: bytes) -> None:
        self.hits: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                self.hits.append(handler.path)
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer(wav(tone(440))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "hls key": (
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n"
        '#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n'
    ),
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
        ' mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        '<Period><AdaptationSet mimeType="audio/wav"><Representation id="1" bandwidth="1">'
        "<BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "imf": (
        '<?xml version="1.0"?><CompositionPlaylist'
        ' xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{0}</Id></CompositionPlaylist>'
    ),
    "asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "rtsp text": "RTSPtext\nrtsp://{0}\n",
    "sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={0}\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio 5004 RTP/AVP 0\n"
    ),
    "bare address": "{0}\n",
}

# FFmpeg takes some formats for what they are only under their usual name.
SUFFIXES = {"hls": ".m3u8", "hls key": ".m3u8", "dash": ".mpd", "concat": ".ffconcat"}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_opens_neither_file_nor_address(
    kind: str, server: CountingServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(encode("mpegts", "aac", 440))
    address = f"http://127.0.0.1:{server.server_port}/secret.ts"
    for target in (
        address,
        str(secret),
        f"file://{secret}",
        f"concat:{secret}",
        f"subfile,,start,0,end,0,,:{secret}",
    ):
        playlist = tmp_path / f"list{SUFFIXES.get(kind, '.txt')}"
        playlist.write_text(PLAYLISTS[kind].format(target))
        with playlist.open("rb") as file, pytest.raises(InvalidAudioError):
            decode_audio(file, HOUR)
    assert server.hits == []


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_the_same_playlists_do_reach_out_where_nothing_forbids_it(
    kind: str, server: CountingServer, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{server.server_port}/secret.ts"
    playlist = tmp_path / f"list{SUFFIXES[kind]}"
    playlist.write_text(PLAYLISTS[kind].format(address))
    with playlist.open("rb") as file, contextlib.suppress(av.FFmpegError):
        av.open(file, "r", container_options={"safe": "0"}).close()
    assert server.hits


def test_an_mp4_whose_samples_lie_in_another_file_does_not_open_it(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret.mov"
    secret.write_bytes(encode("mov", "pcm_s16le", 880, rate=SAMPLE_RATE))
    data = with_external_samples(
        encode("mov", "pcm_s16le", 440, rate=SAMPLE_RATE), str(secret)
    )
    unguarded = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(io.BytesIO(data), "r", container_options=unguarded) as container:
        stolen = np.hstack([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert pitch(stolen) == pytest.approx(880, abs=2)
    assert "no audio that can be decoded" in refusal(data)


def with_external_samples(mov: bytes, path: str) -> bytes:
    """Rewrites the data reference of a QuickTime file to a Macintosh alias of `path` (see
    `mov_read_dref` in libavformat/mov.c).
    """
    padded = path.encode() + bytes(len(path) % 2)
    record = bytes(150) + struct.pack(">HH", 2, len(path)) + padded + b"\xff\xff\0\0"
    alias = b"alis" + bytes(4) + record
    entry = struct.pack(">I", 4 + len(alias)) + alias
    dref = mov.index(b"dref")
    old = struct.unpack(">I", mov[dref - 4 : dref])[0]
    body = b"dref" + bytes(4) + struct.pack(">I", 1) + entry
    grown = 4 + len(body) - old
    data = bytearray(mov[: dref - 4] + bytes(4) + body + mov[dref - 4 + old :])
    data[dref - 4 : dref] = struct.pack(">I", old + grown)
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = data.rindex(parent, 0, dref) - 4
        size = struct.unpack(">I", data[at : at + 4])[0]
        data[at : at + 4] = struct.pack(">I", size + grown)
    return bytes(data)


def test_every_allowed_demuxer_exists_and_none_opens_other_files() -> None:
    allowed = DEMUXERS
    for name in allowed:
        av.ContainerFormat(name, "r")
    openers = (
        "applehttp hls dash concat image2 imf rtp rtsp sap sdp lavfi vobsub webm_dash_manifest"
        " tty alsa fbdev oss v4l2 x11grab"
    )
    assert not set(allowed) & set(openers.split())
    assert len(allowed) == len(set(allowed))


SEEDS = [recording(name) for name in ("sonnet.ogg", "veneno.m4a", "silence.wav")]


@given(st.binary(max_size=4_096))
@example(b"#!AMR\n")
def test_no_bytes_raise_anything_but_invalid_audio(data: bytes) -> None:
    try:
        decode(data, max_seconds=60)
    except InvalidAudioError as error:
        assert len(str(error)) < 200


@given(
    seed=st.sampled_from(SEEDS),
    keep=st.integers(100, 20_000),
    position=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=16),
)
def test_no_damage_raises_anything_but_invalid_audio(
    seed: bytes, keep: int, position: float, patch: bytes
) -> None:
    # The index of the m4a file is at its end.
    data = bytearray(seed if seed == SEEDS[1] else seed[:keep])
    start = int(position * len(data))
    data[start : start + len(patch)] = patch
    try:
        decode(bytes(data), max_seconds=60)
    except InvalidAudioError as error:
        assert len(str(error)) < 200
