"""Any audio or video file to the waveform that Whisper hears: 16 kHz, mono, 16 bits.

This stands in for `whisper.load_audio` (whisper/audio.py), which runs the `ffmpeg` program:
FFmpeg's libraries do the same in this process. A file counts as hostile. It must not open another
file or a URL, must not need more memory than the limit on its length allows, and must not write to
a log.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition

from deployments.audio import SAMPLE_RATE
from deployments.contract.errors import InvalidAudioError, RequestCancelledError

# DSD1024 decodes at 5.6 MHz. A false rate of some GHz would cost the resampler gigabytes.
_HIGHEST_RATE_HZ = 6_000_000

# PyAV before 19 raises an error for a tag that is not UTF-8, unless it is told to replace what it
# cannot read.
_TAG_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# FFmpeg's log quotes tags and URLs out of the file.
av.logging.set_level(None)

# An allow-list, because FFmpeg also knows playlists and session descriptions (hls, concat, sdp,
# image2) that make it open the files and URLs that they name. Each of these demuxers reads nothing
# but its file.
_AUDIO_CONTAINERS = (
    "aa aac aax aea aiff ape asf au avr caf dsf flac iamf ircam loas mp3 mpc mpc8 msnwctcp"
    " nistsphere oma osq paf pvf qcp rso sds sox tak tta voc vqf w64 wav wavarc wsd wv wve xwma"
)
# Some of these streams of one codec have no header and are known by the name of the file alone.
_CODEC_STREAMS = (
    "ac3 ac4 act adx alaw amr amrnb amrwb aptx aptx_hd bit codec2 dts dtshd eac3 g722 g723_1 g726"
    " g726le g728 g729 gsm ilbc lc3 mlp mulaw sbc shn sln spdif truehd"
)
_VIDEO_CONTAINERS = (
    "avi dhav dv flv gxf live_flv lxf matroska mov mpeg mpegts mxf nsv nut ogg rm"
    " swf wtv"
)
DEMUXERS = f"{_AUDIO_CONTAINERS} {_CODEC_STREAMS} {_VIDEO_CONTAINERS}".split()


def decode_audio(
    file: BinaryIO,
    max_seconds: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> npt.NDArray[np.int16]:
    """Decode a recording as `ffmpeg -i FILE -f s16le -ac 1 -acodec pcm_s16le -ar 16000 -` does.

    Gives int16 at 16 kHz, mono, shape (samples,). As in FFmpeg, damaged packets are skipped, and a
    file that ends early gives what it holds. Blocks; call it in a thread.

    file: seekable, open in binary mode, at its beginning; it stays open
    max_seconds: the longest recording allowed; decoding ends where a longer one passes this
    cancelled: called at every packet; true ends the work

    Raises InvalidAudioError (nothing to decode, or too long) and RequestCancelledError.
    """
    # A bytearray grows in place by an eighth, so that hours of audio are never held twice.
    pcm = bytearray()
    try:
        opened: InputContainer = av.open(
            file, "r", container_options=_CONTAINER_OPTIONS, **_TAG_OPTIONS
        )
        with opened as container:
            frames = _decode(container, _choose_stream(container), cancelled)
            for frame in _resample(_limit(frames, max_seconds)):
                # A plane is padded beyond its samples.
                pcm += memoryview(frame.planes[0])[: frame.samples * 2]
    except FFmpegError:
        raise InvalidAudioError(
            "the file is not audio or video of a known kind, or it is damaged"
        ) from None
    if not pcm:
        raise InvalidAudioError("the file holds no audio that can be decoded")
    return np.frombuffer(pcm, dtype=np.int16)


def _audio_decoders() -> Iterator[str]:
    for name in sorted(av.codecs_available):
        try:
            if av.Codec(name, "r").type == "audio":
                yield name
        except UnknownCodecError:  # an encoder
            continue


_CONTAINER_OPTIONS = {
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "none",
    # Without this, FFmpeg decodes a cover picture or a video frame while it probes the file. That
    # is of no use here, and a small picture can unpack to a gigabyte.
    "codec_whitelist": ",".join(_audio_decoders()),
}


def _choose_stream(container: InputContainer) -> AudioStream:
    """The stream that the `ffmpeg` program takes.

    A stream that is marked as default comes first, then the one with most channels, then the
    first.
    """
    known = [s for s in container.streams.audio if s.codec_context is not None]
    if not known:
        raise InvalidAudioError("the file has no audio stream of a known codec")
    chosen = max(
        known, key=lambda s: (Disposition.default in s.disposition, s.channels)
    )
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    # FFmpeg would start a thread for each core. Many recordings are decoded at the same time.
    chosen.codec_context.thread_count = 1
    return chosen


def _decode(
    container: InputContainer, stream: AudioStream, cancelled: Callable[[], bool]
) -> Iterator[AudioFrame]:
    for packet in _packets(container, stream):
        if cancelled():
            raise RequestCancelledError("The request was cancelled")
        try:
            yield from stream.decode(packet)
        except FFmpegError:
            continue


def _packets(
    container: InputContainer, stream: AudioStream
) -> "Iterator[Packet[AudioStream] | None]":
    try:
        yield from container.demux(stream)
    except FFmpegError:
        # The rest of the file cannot be read. None makes the decoder give the frames that it holds.
        yield None


def _limit(frames: Iterator[AudioFrame], max_seconds: float) -> Iterator[AudioFrame]:
    """Pass the frames on, and raise InvalidAudioError where they exceed the limit.

    This comes before resampling: at a false sample rate of 1 Hz even a small frame becomes hours.
    """
    seconds = 0.0
    for frame in frames:
        if not 0 < frame.sample_rate <= _HIGHEST_RATE_HZ:
            raise InvalidAudioError(
                f"its sample rate of {frame.sample_rate} Hz is not plausible"
            )
        seconds += frame.samples / frame.sample_rate
        # Half a sample allows for the rounding of a long sum.
        if seconds > max_seconds + 0.5 / SAMPLE_RATE:
            limit = timedelta(seconds=max_seconds)
            raise InvalidAudioError(
                f"the recording is longer than the limit of {limit} ({max_seconds:g} s)"
            )
        yield frame


def _resample(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    source = None
    for frame in frames:
        if source != (
            source := (frame.format.name, frame.layout.name, frame.sample_rate)
        ):
            resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        yield from resampler.resample(frame)
    # At its end, a resampler that had nothing to do gives [None].
    yield from filter(None, resampler.resample(None))
