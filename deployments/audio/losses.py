"""What is missing from a decoded recording, and where, in words for the caller.

Official Whisper decodes by the `ffmpeg` program, which leaves out what it cannot decode and closes
the gaps. The samples here are the same; these warnings tell what happened.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

# Packets come with times of their own. Decoders start late, and clocks run apart by milliseconds;
# a difference below this many seconds does not count as a gap.
_SMALLEST_GAP_S = 0.25
# A declared length is rounded, and holds the encoder's padding. In a long file, the declared rate
# may be a little off; but no more than a few words may ever be missing without a warning.
_SMALLEST_MISSING_S = 0.5
_SMALLEST_MISSING_PART = 0.001
_LARGEST_UNTOLD_S = 2.0
# Some formats end in a few bytes that are no audio.
_SMALLEST_UNREAD_BYTES = 256
# FFmpeg's guess of a length is exact but for rounding, and for the place where the audio begins.
_GUESS_TOLERANCE_S = 0.05
_GUESS_TOLERANCE = 1e-4
_MICROSECONDS = 1_000_000
_EARLIER = "; what follows comes that much earlier than in the file"
_ENDLESS_BYTES = (1 << 31) - (1 << 20)


@dataclass
class _Tally:
    """Events of one kind: how many, how large, and where in the audio they happened.

    size: bytes; length, first, last: seconds
    """

    count: int = 0
    size: int = 0
    length: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def add(self, at: float, size: int = 0, length: float = 0.0) -> None:
        self.first = self.first if self.count else at
        self.last = at
        self.count += 1
        self.size += size
        self.length += length

    @property
    def place(self) -> str:
        if self.last - self.first < 0.01:
            return f"at {self.first:.2f} s"
        return f"between {self.first:.2f} s and {self.last:.2f} s"


class Losses:
    """Watches the decoding of a recording.

    seconds: of audio so far
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._damaged = _Tally()
        self._jumps = _Tally()
        self._jumps_back = _Tally()
        self._unread = _Tally()
        self._declared: float | None = None
        self._bit_rate = 0
        self._size = 0
        self._parts_left_out = 0
        self._cut_short = False
        self._parts = 0
        self._damaged_now = False
        self._clock: float | None = None
        self._last_time: float | None = None
        self._rate: int | None = None

    def begin_part(self, container: InputContainer, stream: AudioStream) -> None:
        """Another container begins; its times count anew."""
        self._parts += 1
        self._declared = _declared_seconds(container, stream)
        self._bit_rate = _bit_rate(container)
        self._size = max(container.size, 0)
        self._clock = self._last_time = self._rate = None
        self._damaged_now = False

    def end_part(self, begin: int) -> None:
        """A container has ended.

        begin: the byte of its first packet; only headers and tags come before it
        """
        # Where a file tells no length, FFmpeg divides the size of its audio by the bit rate.
        if self._declared is not None and self._bit_rate:
            guess = 8 * (self._size - begin) / self._bit_rate
            tolerance = _GUESS_TOLERANCE_S + _GUESS_TOLERANCE * guess
            if abs(self._declared - guess) < tolerance:
                self._declared = None

    def packet_lost(self, size: int) -> None:
        """The decoder could not read a packet of `size` bytes."""
        self._damaged.add(self.seconds, size)
        self._damaged_now = True

    def unread(self, size: int) -> None:
        """The demuxer left out `size` bytes."""
        # Some demuxers add bytes to their packets, which then seem to pass the end of the file.
        self._unread.add(self.seconds, max(0, size))

    def parts_left_out(self, size: int) -> None:
        """The file has more parts than are read; `size` bytes were left out."""
        self._parts_left_out = size

    def cut_short(self, seconds: float | None = None) -> None:
        """The end of the file is missing; seconds: how much, where it is known."""
        self._cut_short = True
        if seconds is not None:
            self._declared = self.seconds + seconds

    def watch(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Pass the frames on."""
        for frame in frames:
            length = frame.samples / frame.sample_rate
            self._compare(frame)
            yield frame
            self.seconds += length
            self._clock = None if self._clock is None else self._clock + length

    def warnings(self) -> list[str]:
        """Sentences for the caller. Call this after the last frame."""
        found = []
        if self._damaged.count:
            length = self._damaged.length
            found.append(
                f"Damaged packets were left out: {self._damaged.count} {self._damaged.place}"
                f" ({self._damaged.size} bytes"
                + (f", {length:.2f} s){_EARLIER}" if length else ")")
            )
        if self._jumps.count:
            found.append(
                f"The file's clock jumps ahead by {self._jumps.length:.2f} s"
                f" {self._jumps.place}; the gap was left out{_EARLIER}"
            )
        if self._jumps_back.count:
            found.append(
                f"The file's clock jumps back by {self._jumps_back.length:.2f} s"
                f" {self._jumps_back.place}; all audio is kept, in the order of the file"
            )
        if self._unread.size >= _SMALLEST_UNREAD_BYTES:
            found.append(
                f"{self._unread.size} bytes of the file {self._unread.place} of the audio"
                " could not be read and were left out"
            )
        if self._parts_left_out:
            found.append(
                f"The file is joined from too many parts; the last {self._parts_left_out} bytes,"
                f" after {self.seconds:.2f} s of audio, were left out"
            )
        return found + self._missing()

    def _missing(self) -> list[str]:
        found = self.seconds + self._damaged.length + self._jumps.length
        # The length that the first of several containers declares is not that of all.
        declared = self._declared if self._parts == 1 else None
        if declared is not None and declared - found >= _smallest_missing_s(declared):
            text = (
                f"The file says that it holds {declared:.2f} s of audio, but only"
                f" {self.seconds:.2f} s could be decoded: it was cut, or it is damaged"
            )
        elif self._cut_short:
            text = f"The file was cut: its end is missing after {self.seconds:.2f} s of audio"
        else:
            return []
        return [text]

    def _compare(self, frame: AudioFrame) -> None:
        """Compare the frame's own time with the audio that came before the frame."""
        self._rate = self._rate or frame.sample_rate
        # Some demuxers give a time to the first packet of a block alone, and some compute the
        # times from the first rate of a stream whose rate changes.
        if frame.time in (None, self._last_time) or frame.sample_rate != self._rate:
            return
        gap = 0.0 if self._clock is None else frame.time - self._clock
        if self._clock is None or abs(gap) >= _SMALLEST_GAP_S:
            self._clock = frame.time
            if self._damaged_now and gap > 0:
                self._damaged.length += gap
            elif gap:
                jumps = self._jumps if gap > 0 else self._jumps_back
                jumps.add(self.seconds, length=abs(gap))
        self._damaged_now = False
        self._last_time = frame.time


def _smallest_missing_s(declared: float) -> float:
    part = min(_SMALLEST_MISSING_PART * declared, _LARGEST_UNTOLD_S)
    return max(_SMALLEST_MISSING_S, part)


def _bit_rate(container: InputContainer) -> int:
    """Bits a second of all streams, as far as they are known."""
    return sum(getattr(s.codec_context, "bit_rate", 0) or 0 for s in container.streams)


def _declared_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The length that the file declares for this stream; None where it declares none."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        seconds = container.duration / _MICROSECONDS
    else:
        return None
    # A program that writes a WAV file into a pipe declares the greatest size there is.
    endless = seconds * _bit_rate(container) / 8 > _ENDLESS_BYTES > container.size
    return None if endless else seconds
