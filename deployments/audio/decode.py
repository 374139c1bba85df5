"""Any audio or video file to the waveform that Whisper hears: 16 kHz, mono, 16 bits.

This stands in for `whisper.load_audio` (whisper/audio.py), which runs the `ffmpeg` program:
FFmpeg's libraries do the same in the process that calls. In the service that is a confined process
(sandbox/), because a file counts as hostile. It must not open another file or a URL, must not need
more memory than the limit on its length allows, and must not write to a log.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from deployments.audio import SAMPLE_RATE, ogg, truncation
from deployments.audio.containers import PacketReader, open_container
from deployments.audio.losses import Losses
from deployments.audio.mono import MonoMixer, PhaseMeter
from deployments.audio.tracks import MOST_LISTED, choose_track
from deployments.contract.errors import InvalidAudioError, InvalidRequestError

# DSD1024 decodes at 5.6 MHz. A false rate of some GHz would cost the resampler gigabytes.
_HIGHEST_RATE_HZ = 6_000_000
_MICROSECONDS = 1_000_000
# Half a minute of the waveform.
_PIECE_BYTES = 1 << 20
# Samples this far from zero and less are silence: -60 dBFS.
_SILENT_PEAK = 32
# With fewer unread bytes than this behind the last packet, nothing is told: tags and indexes stand
# there.
_LARGE_TAIL = 1 << 14
# Many programs write sizes that are a few bytes wrong.
_SMALLEST_CUT_S = 0.1
_SMALLEST_CUT_BYTES = 1 << 10
# Opening a part takes a millisecond or more, and a gigabyte holds millions of empty ones. Parts
# of the same format, which FFmpeg reads as one, count as one.
_MOST_PARTS = 2_000

_UNKNOWN = (
    "the file is not audio or video of a known kind, or it is damaged."
    " Raw audio without a header has to be put into a container, such as WAV"
)


@dataclass(frozen=True)
class DecodedAudio:
    """A decoded recording.

    samples: int16 at 16 kHz, mono, shape (samples,)
    start_s, warnings: as in `Findings`
    """

    samples: npt.NDArray[np.int16]
    start_s: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """What is known of a decoded recording beside its samples.

    start_s: seconds by which the audio starts later than the file's other streams; usually 0
    warnings: what was skipped, is missing or is doubtful, as sentences for the caller
    """

    start_s: float
    warnings: list[str]


def decode_audio(
    file: BinaryIO,
    max_seconds: float,
    *,
    track: int | str | None = None,
    channel: int | None = None,
) -> DecodedAudio:
    """Decode a recording as `ffmpeg -i FILE -f s16le -ac 1 -acodec pcm_s16le -ar 16000 -` does.

    As in FFmpeg, damaged packets are skipped, and a file that ends early gives what it holds;
    the warnings tell so. Blocks.

    file: seekable, open in binary mode, at its beginning; it stays open
    max_seconds: the longest recording allowed; decoding ends where a longer one passes this
    track: number among the audio streams, from 0, or a language; None: FFmpeg's choice
    channel: the one channel to take, from 0; None: the mix of all

    Raises InvalidAudioError (nothing to decode, or too long) and InvalidRequestError (no such track
    or channel).
    """
    # A bytearray grows in place by an eighth, so that hours of audio are never held twice.
    pcm = bytearray()
    found = decode_into(pcm.extend, file, max_seconds, track=track, channel=channel)
    samples = np.frombuffer(pcm, dtype=np.int16)
    return DecodedAudio(samples, found.start_s, found.warnings)


def decode_into(
    write: Callable[[bytearray], object],
    file: BinaryIO,
    max_seconds: float,
    *,
    track: int | str | None = None,
    channel: int | None = None,
) -> Findings:
    """As `decode_audio`, but the samples are written in pieces and never held together.

    write: takes the next bytes of the waveform, int16 in this machine's order; its exceptions end
        the work
    """
    decoding = _Decoding(file, max_seconds, track)
    meter, mixer = PhaseMeter(), MonoMixer(channel)
    pieces = _Pieces(write)
    try:
        for frames in decoding.parts():
            for frame in mixer.mix(meter.watch(frames) if channel is None else frames):
                # A plane is padded beyond its samples.
                pieces.add(memoryview(frame.planes[0])[: frame.samples * 2])
    except FFmpegError:
        raise InvalidAudioError(_UNKNOWN) from None
    pieces.flush()
    if pieces.empty:
        raise InvalidAudioError("the file holds no audio that can be decoded")
    warnings = [
        *decoding.losses.warnings(),
        *mixer.warnings(),
        *_level_warnings(pieces.peak, meter, decoding.other_tracks, channel),
    ]
    return Findings(decoding.start_s, warnings)


class _Pieces:
    """Collects samples, and writes them in large pieces.

    peak: the largest distance of a sample from zero
    """

    def __init__(self, write: Callable[[bytearray], object]) -> None:
        self._write = write
        self._next = bytearray()
        self.empty, self.peak = True, 0

    def add(self, samples: memoryview) -> None:
        self._next += samples
        if len(self._next) >= _PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._next:
            return
        samples = np.frombuffer(self._next, dtype=np.int16)
        self.peak = max(self.peak, int(samples.max()), -int(samples.min()))
        self.empty = False
        self._write(self._next)
        self._next = bytearray()


class _Decoding:
    """The frames of one audio track, in all parts of the file.

    start_s: seconds by which the track starts later than the file's other streams
    other_tracks: numbers of the other audio tracks
    """

    def __init__(
        self, file: BinaryIO, max_seconds: float, track: int | str | None
    ) -> None:
        self.losses = Losses()
        self.start_s = 0.0
        self.other_tracks: list[int] = []
        self._file = file
        self._max_seconds = max_seconds
        self._track = track
        self._number = 0
        self._next: int | None = None

    def parts(self) -> Iterator[Iterator[AudioFrame]]:
        """The frames of one container after another; each has to be read to its end.

        Raises FFmpegError where the file cannot be opened, and what `choose_track` raises.
        """
        with open_container(self._file) as container:
            stream = choose_track(container, self._track)
            tracks = container.streams.audio
            self._number = tracks.index(stream)
            self.other_tracks = [n for n in range(len(tracks)) if n != self._number]
            self.start_s = _delay(container, stream)
            yield self._part(container, stream, 0)
        parts = 1
        while (start := self._next) is not None:
            self._next = None
            if parts == _MOST_PARTS:
                self.losses.parts_left_out(self._size() - start)
                return
            parts += 1
            try:
                container = open_container(self._file, start)
                stream = self._track_of_later_part(container)
            except (FFmpegError, InvalidAudioError, InvalidRequestError):
                self._next = ogg.next_part(self._file, start)
                self.losses.unread((self._next or self._size()) - start)
                continue
            with container:
                yield self._part(container, stream, start)

    def _track_of_later_part(self, container: InputContainer) -> AudioStream:
        try:
            return choose_track(container, self._track)
        except InvalidRequestError:
            # Often the first part alone says in which language its tracks are.
            return choose_track(container, self._number)

    def _part(
        self, container: InputContainer, stream: AudioStream, start: int
    ) -> Iterator[AudioFrame]:
        self.losses.begin_part(container, stream)
        reader = PacketReader(container, stream)
        frames = _decode(reader, stream, self.losses)
        yield from self.losses.watch(self._limit(frames))
        self._look_behind(container, stream, start, reader)

    def _look_behind(
        self,
        container: InputContainer,
        stream: AudioStream,
        start: int,
        reader: PacketReader,
    ) -> None:
        """Find the next part, or what is missing or was not read, behind a part's last packet."""
        self.losses.end_part(reader.begin)
        left = self._size() - start - reader.end
        if container.format.name == "ogg":
            if reader.stopped:
                self._next = ogg.next_part(self._file, start + reader.position)
                if self._next is None:
                    self.losses.unread(left)
            elif ogg.ends_within_page(self._file, start + reader.position):
                self.losses.cut_short()
        # Of a demuxer that does not tell places, nobody knows how far it came.
        elif reader.end and (
            reader.stopped
            # An index or tags may stand behind the audio, and other streams in any order.
            or (
                len(container.streams) == 1
                and left > max(_LARGE_TAIL, self._size() / 3)
            )
        ):
            self.losses.unread(left)
        self._compare_size(container, stream)

    def _compare_size(self, container: InputContainer, stream: AudioStream) -> None:
        name = container.format.name
        missing = truncation.missing_bytes(self._file, name)
        if name != "avi" and stream.bit_rate:
            missing_s = 8 * missing / stream.bit_rate
            if missing_s >= _SMALLEST_CUT_S:
                self.losses.cut_short(missing_s)
        elif missing >= _SMALLEST_CUT_BYTES:
            self.losses.cut_short()

    def _limit(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Pass the frames on, and raise InvalidAudioError where they exceed the limit.

        This comes before resampling: at a false sample rate of 1 Hz even a small frame becomes
        hours.
        """
        for frame in frames:
            if not 0 < frame.sample_rate <= _HIGHEST_RATE_HZ:
                raise InvalidAudioError(
                    f"its sample rate of {frame.sample_rate} Hz is not plausible"
                )
            seconds = self.losses.seconds + frame.samples / frame.sample_rate
            # Half a sample allows for the rounding of a long sum.
            if seconds > self._max_seconds + 0.5 / SAMPLE_RATE:
                limit = timedelta(seconds=self._max_seconds)
                raise InvalidAudioError(
                    f"the recording is longer than the limit of {limit}"
                    f" (max_audio_s: {self._max_seconds:g})"
                )
            yield frame

    def _size(self) -> int:
        return self._file.seek(0, os.SEEK_END)


def _decode(
    packets: PacketReader, stream: AudioStream, losses: Losses
) -> Iterator[AudioFrame]:
    for packet in packets:
        try:
            yield from stream.decode(packet)
        except FFmpegError:
            losses.packet_lost(packet.size)
    # None makes the decoder give the frames that it still holds.
    with suppress(FFmpegError):
        yield from stream.decode(None)


def _delay(container: InputContainer, stream: AudioStream) -> float:
    """Seconds by which the stream starts later than the container."""
    start, base = stream.start_time, stream.time_base
    if start is None or base is None or container.start_time is None:
        return 0.0
    seconds = float(start * base) - container.start_time / _MICROSECONDS
    return max(0.0, round(seconds, 3))


def _level_warnings(
    peak: int,
    meter: PhaseMeter,
    other_tracks: list[int],
    channel: int | None,
) -> Iterator[str]:
    if meter.cancelled:
        yield (
            "The channels cancel each other out when they are mixed;"
            " audio_channel 0 takes one of them alone"
        )
    elif peak <= _SILENT_PEAK:
        if channel is not None:
            yield f"Channel {channel} is silent; audio_channel null mixes all channels"
        elif other_tracks:
            numbers = ", ".join(map(str, other_tracks[:MOST_LISTED]))
            yield (
                "The audio track is silent, and the file has other audio tracks:"
                f" audio_track {numbers}"
            )
        else:
            yield "The recording is silent: text that Whisper writes for it was not said"
