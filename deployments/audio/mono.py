"""From decoded frames of any rate, format and number of channels to 16 kHz, mono, 16 bits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.resampler import AudioResampler
from av.error import FFmpegError

from deployments.audio import SAMPLE_RATE
from deployments.contract.errors import InvalidRequestError

Samples = npt.NDArray[Any]

# NumPy's types by FFmpeg's names of the packed sample formats.
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_FORMATS = {np.dtype(kind): name for name, kind in _DTYPES.items()}
# A frame can hold a whole file, so this many numbers of it are worked on at a time.
_BLOCK = 1 << 18
# One frame in 16 is measured, so that hours of audio cost next to nothing.
_METERED = 16
# Mixing channels that have nothing in common gives their mean power over their number. Channels
# cancel where the mix has less than this part of that.
_CANCELLED = 0.05
_SILENT_POWER = 1e-6  # -60 dBFS


class MonoMixer:
    """Turns frames into frames of 16 kHz, mono, s16.

    channel: the one channel to take, from 0; None: FFmpeg's mix of all of them, or their mean
        where FFmpeg has no mix for so many
    """

    def __init__(self, channel: int | None) -> None:
        self._begun = self._lacks_channel = False
        self._channel = channel
        self._resampler = _new_resampler()

    def mix(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Mix the frames of one part of a recording; may be called for one part after another.

        Raises InvalidRequestError where the recording's first frame lacks the channel.
        """
        source = None
        for frame in frames:
            format_of_frame = frame.format.name, frame.layout.name, frame.sample_rate
            changed = format_of_frame != source
            if changed:
                if not self._begun:
                    self._begun = True
                    self._check_channel(frame)
                source = format_of_frame
                # As in the `ffmpeg` program, what the old resampler still holds is dropped.
                self._resampler = _new_resampler()
                by_hand = self._channel is not None
            if not by_hand:
                try:
                    yield from self._resampler.resample(frame)
                    continue
                except FFmpegError:
                    if not changed:
                        raise
                    # FFmpeg knows no mix for this number of channels.
                    by_hand = True
                    self._resampler = _new_resampler()
            for block in channel_blocks(frame):
                mono = _as_frame(self._mono(block), frame.sample_rate)
                yield from self._resampler.resample(mono)
        # At its end, a resampler that had nothing to do gives [None].
        yield from filter(None, self._resampler.resample(None))

    def warnings(self) -> list[str]:
        """Sentences for the caller. Call this after the last frame."""
        if not self._lacks_channel:
            return []
        return [
            f"A later part of the recording has no channel {self._channel} and counts as silence"
        ]

    def _mono(self, block: Samples) -> Samples:
        if self._channel is None:
            with np.errstate(all="ignore"):
                return _as_floats(block).mean(axis=0)
        if self._channel < len(block):
            return block[self._channel]
        self._lacks_channel = True
        return np.zeros(block.shape[1])

    def _check_channel(self, frame: AudioFrame) -> None:
        count = frame.layout.nb_channels
        if self._channel is not None and self._channel >= count:
            raise InvalidRequestError(
                f"Invalid audio_channel: the audio track has no channel {self._channel}."
                + (
                    f" Its channels: 0 to {count - 1}"
                    if count > 1
                    else " It has only 0"
                )
            )


class PhaseMeter:
    """Tells whether channels cancel each other out when they are mixed."""

    def __init__(self) -> None:
        self._mixed = self._expected = self._power = self._blocks = 0.0

    def watch(self, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        """Pass the frames on."""
        for number, frame in enumerate(frames):
            if number % _METERED == 0 and frame.layout.nb_channels > 1:
                for block in channel_blocks(frame):
                    self._measure(_as_floats(block))
            yield frame

    @property
    def cancelled(self) -> bool:
        audible = self._power > _SILENT_POWER * self._blocks
        return audible and self._mixed < _CANCELLED * self._expected

    def _measure(self, block: Samples) -> None:
        # A file of floats may hold any number, and none.
        with np.errstate(all="ignore"):
            power = float(np.square(block).mean())
            mixed = float(np.square(block.mean(axis=0)).mean())
        self._power += power
        self._blocks += 1
        self._expected += power / len(block)
        self._mixed += mixed


def channel_blocks(frame: AudioFrame) -> Iterator[Samples]:
    """The frame's numbers as they are, in pieces of shape (channels, samples)."""
    kind = np.dtype(_DTYPES[frame.format.packed.name])
    channels = frame.layout.nb_channels
    step = max(1, _BLOCK // channels)
    if not frame.format.is_planar:
        numbers = np.frombuffer(
            memoryview(frame.planes[0]), kind, frame.samples * channels
        )
        packed = numbers.reshape(frame.samples, channels).T
        for start in range(0, frame.samples, step):
            yield packed[:, start : start + step]
        return
    # `frame.planes` looks for a null pointer behind the last plane, which FFmpeg does not promise.
    planes = [
        np.frombuffer(memoryview(AudioPlane(frame, number)), kind, frame.samples)
        for number in range(channels)
    ]
    for start in range(0, frame.samples, step):
        yield np.stack([plane[start : start + step] for plane in planes])


def _as_floats(block: Samples) -> Samples:
    """As float64 from -1 to 1."""
    if block.dtype.kind == "f":
        # A damaged file may hold signalling NaNs, which stay NaNs.
        with np.errstate(invalid="ignore"):
            return block.astype(np.float64)
    bits = 8 * block.dtype.itemsize
    signed = block.astype(np.float64) - (128 if block.dtype.kind == "u" else 0)
    return signed / 2.0 ** (bits - 1)


def _as_frame(mono: Samples, rate: int) -> AudioFrame:
    # PyAV makes no frames of 64-bit integers.
    mono = _as_floats(mono) if mono.dtype == np.int64 else mono
    row = np.ascontiguousarray(mono)[None]
    frame = AudioFrame.from_ndarray(row, format=_FORMATS[mono.dtype], layout="mono")
    frame.sample_rate = rate
    return frame


def _new_resampler() -> AudioResampler:
    return AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
