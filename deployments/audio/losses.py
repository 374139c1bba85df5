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
# what is below this many seconds is no gap.
_SMALLEST_GAP_S = 0.25
# A declared length is rounded, and holds the encoder's padding.
_SMALLEST_MISSING_S = 0.5
_SMALLEST_MISSING_PART = 0.01
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
        self._clock = self._last_time = self._rate = None
        self._damaged_now = False

    def packet_lost(self, size: int) -> None:
        """The decoder could not read a packet of so many bytes."""
        self._damaged.add(self.seconds, size)
        self._damaged_now = True

    def unread(self, size: int) -> None:
        """The demuxer left out so many bytes."""
        self._unread.add(self.seconds, size)

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
        """What there is to tell, when all frames have passed."""
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
        if self._unread.count:
            found.append(
                f"{self._unread.size} bytes of the file {self._unread.place} of the audio"
                " could not be read and were left out"
            )
        return found + self._missing()

    def _missing(self) -> list[str]:
        found = self.seconds + self._damaged.length + self._jumps.length
        # The length that the first of several containers declares is not that of all.
        declared = self._declared if self._parts == 1 else None
        if declared is not None and declared - found >= max(
            _SMALLEST_MISSING_S, _SMALLEST_MISSING_PART * declared
        ):
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


def _declared_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The length that the file declares for this stream; None where it declares none."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        seconds = container.duration / _MICROSECONDS
    else:
        return None
    rate = sum(getattr(s.codec_context, "bit_rate", 0) or 0 for s in container.streams)
    size = max(container.size, 0)
    # Where a file tells no length, FFmpeg divides its size by the bit rate.
    guessed = rate and abs(seconds - 8 * size / rate) < 0.02 * seconds
    # A program that writes a WAV file into a pipe declares the greatest size there is.
    endless = rate and seconds * rate / 8 > _ENDLESS_BYTES > size
    return None if guessed or endless else seconds
