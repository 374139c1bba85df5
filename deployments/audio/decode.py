"""Any audio or video container, any codec, to the waveform that Whisper hears: 16 kHz, mono, 16 bits.

The stand-in for `whisper.load_audio` (whisper/audio.py), which runs the `ffmpeg` program; here FFmpeg's libraries do the same in process.
A file is hostile until decoded: it may open no other file and no URL, cost no more memory than its cap allows, and log nothing.
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

from deployments.contract.errors import InvalidAudioError, RequestCancelledError

SAMPLE_RATE = 16_000

# In Hz. DSD1024 decodes at 5.6 MHz; a rate of GHz is a lie that costs the resampler gigabytes.
_HIGHEST_RATE = 6_000_000

# PyAV before 19 raises an error for a tag that is not UTF-8, unless it is told to replace what it cannot read.
_TAG_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# FFmpeg's log quotes tags and URLs out of the file.
av.logging.set_level(None)

# An allow-list, because FFmpeg also knows playlists and session descriptions (hls, concat, sdp, image2, ...) that make it open what they
# name. Each of these demuxers reads its own bytes only.
DEMUXERS = (
    # containers of audio
    "aa,aac,aax,aea,aiff,ape,asf,au,avr,caf,dsf,flac,iamf,ircam,loas,mp3,mpc,mpc8,msnwctcp,nistsphere,oma,osq,paf,pvf,qcp,rso,sds,sox,tak,"
    "tta,voc,vqf,w64,wav,wavarc,wsd,wv,wve,xwma,"
    # streams of one codec; some have no header and are known by the file's name only
    "ac3,ac4,act,adx,alaw,amr,amrnb,amrwb,aptx,aptx_hd,bit,codec2,dts,dtshd,eac3,g722,g723_1,g726,g726le,g728,g729,gsm,ilbc,lc3,mlp,mulaw,"
    "sbc,shn,sln,spdif,truehd,"
    # containers of video
    "avi,dhav,dv,flv,gxf,live_flv,lxf,matroska,mov,mpeg,mpegts,mxf,nsv,nut,ogg,rm,swf,wtv"
)


def decode_audio(
    file: BinaryIO,
    max_seconds: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> npt.NDArray[np.int16]:
    """The recording as `ffmpeg -i FILE -f s16le -ac 1 -acodec pcm_s16le -ar 16000 -` would give it: int16, shape (samples,), mono, 16 kHz.

    Blocks; call it in a thread. Damaged packets are skipped and a file that ends early gives what it holds, as in FFmpeg.

    file: seekable, open in binary mode, at its beginning; it stays open
    max_seconds: the longest recording allowed; a longer one is refused as soon as it has grown past this
    cancelled: asked at every packet; true ends the work

    Raises InvalidAudioError (nothing to decode, or too long) and RequestCancelledError.
    """
    # Grows in place by an eighth, so that hours of audio are never held twice.
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
    "format_whitelist": DEMUXERS,
    "protocol_whitelist": "none",
    # Probing would otherwise decode a cover picture or a video frame: of no use here, and a small one can unpack to a gigabyte.
    "codec_whitelist": ",".join(_audio_decoders()),
}


def _choose_stream(container: InputContainer) -> AudioStream:
    """The stream that the `ffmpeg` program takes: one marked as default first, then the one of most channels, then the first."""
    known = [s for s in container.streams.audio if s.codec_context is not None]
    if not known:
        raise InvalidAudioError("the file has no audio stream of a known codec")
    chosen = max(
        known, key=lambda s: (Disposition.default in s.disposition, s.channels)
    )
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
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
        # The file cannot be read on; what the decoder still holds is good.
        yield None


def _limit(frames: Iterator[AudioFrame], max_seconds: float) -> Iterator[AudioFrame]:
    """Counts before resampling: at a false sample rate of 1 Hz even a small frame becomes hours."""
    seconds = 0.0
    for frame in frames:
        if not 0 < frame.sample_rate <= _HIGHEST_RATE:
            raise InvalidAudioError(
                f"its sample rate of {frame.sample_rate} Hz is not plausible"
            )
        seconds += frame.samples / frame.sample_rate
        # Half a sample forgives the rounding of a long sum.
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
    # A resampler with nothing to do answers its end with [None].
    yield from filter(None, resampler.resample(None))
