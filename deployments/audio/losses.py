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
_ENDLESS_BYTES = (1 << 31) - (1 << 20)


@dataclass
class _Tally:
    """Events of one kind: how many, and where the first and the last happened, in seconds."""

    count: int = 0
    seconds: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def add(self, at: float, seconds: float = 0.0, count: int = 1) -> None:
        self.first = self.first if self.count else at
        self.last = at
        self.count += count
        self.seconds += seconds

    @property
    def place(self) -> str:
        if self.last - self.first < 0.01:
            return f"at {self.first:.2f} s"
        return f"between {self.first:.2f} and {self.last:.2f} s"


class Losses:
    """Watches the decoding of a recording.

    seconds: of audio so far
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._clock: float | None = None
        self._undecoded = 0
        self._damaged = _Tally()
        self._jumps = _Tally()
        self._jumps_back = _Tally()
        self._unread = _Tally()
        self._declared: float | None = None
        self._parts = 0

    def begin_part(self, container: InputContainer, stream: AudioStream) -> None:
        """Another container begins; times count anew."""
        self._parts += 1
        self._clock = None
        self._declared = _declared_seconds(container, stream)

    def packet_lost(self) -> None:
        """The decoder could not read a packet."""
        self._undecoded += 1

    def unread(self, size: int) -> None:
        """The demuxer could not read so many bytes."""
        self._unread.add(self.seconds, size)

    def watch(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Pass the frames on."""
        for frame in frames:
            length = frame.samples / frame.sample_rate
            self._compare(frame.time)
            yield frame
            self.seconds += length
            self._clock = None if self._clock is None else self._clock + length

    def _compare(self, time: float | None) -> None:
        if time is None:
            return
        gap = 0.0 if self._clock is None else time - self._clock
        if self._clock is None or abs(gap) >= _SMALLEST_GAP_S:
            self._clock = time
        else:
            gap = 0.0
        if self._undecoded:
            self._damaged.add(self.seconds, max(gap, 0.0), self._undecoded)
            self._undecoded = 0
        elif gap:
            (self._jumps if gap > 0 else self._jumps_back).add(self.seconds, abs(gap))

    def warnings(self) -> list[str]:
        """What there is to tell, when all frames have passed."""
        if self._undecoded:
            self._damaged.add(self.seconds, count=self._undecoded)
            self._undecoded = 0
        found = []
        if self._damaged.count:
            lost = f" ({self._damaged.seconds:.2f} s)" if self._damaged.seconds else ""
            found.append(
                f"{self._damaged.count} damaged packets{lost} {self._damaged.place} are left out;"
                " what follows comes that much earlier than in the file"
            )
        if self._jumps.count:
            found.append(
                f"The file's clock jumps ahead by {self._jumps.seconds:.2f} s"
                f" {self._jumps.place}, without audio for the gap;"
                " what follows comes that much earlier than in the file"
            )
        if self._jumps_back.count:
            found.append(
                f"The file's clock jumps back by {self._jumps_back.seconds:.2f} s"
                f" {self._jumps_back.place}; all audio is kept, in the order of the file"
            )
        if self._unread.count:
            found.append(
                f"{self._unread.seconds:.0f} bytes of the file {self._unread.place}"
                " cannot be read and are left out"
            )
        return found + self._missing()

    def _missing(self) -> list[str]:
        # The length that the first of several containers declares is not that of all.
        if self._declared is None or self._parts > 1:
            return []
        found = self.seconds + self._damaged.seconds + self._jumps.seconds
        missing = self._declared - found
        if missing < max(_SMALLEST_MISSING_S, _SMALLEST_MISSING_PART * self._declared):
            return []
        told = (
            f"The file says that it holds {self._declared:.2f} s of audio, but only"
            f" {self.seconds:.2f} s could be decoded: it was cut, or is damaged"
        )
        return [told]


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
