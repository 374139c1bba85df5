"""The log-mel spectrogram of `whisper.audio`, computed in pieces on the model's device.

The pieces bound the memory: the complex spectrum of a whole recording takes 1.9 GB for an hour and
8 GB for four. Only the logarithms are stored. Whisper's normalisation needs the maximum of the
whole recording, so it is applied to each window when the window is encoded. The values are the
same, and the engine's thread never makes a pass over a recording of hours while others wait.
"""

import weakref
from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters

from deployments.engine.model.transfer import send

PIECE_FRAMES = 30_000  # five minutes; the complex spectrum of a piece takes 48 MB
_MARGIN = N_FFT // 2


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """The log-mel spectrogram of a whole recording before Whisper's normalisation.

    logarithms: decimal logarithms of the mel energies in fp32, shape (mels, frames), on the model's
        device or on the host
    floor: the recording's maximum less 8, to which Whisper raises all lower values; shape (), on
        the model's device. The value is valid once every piece has been computed.
    """

    logarithms: Tensor
    floor: Tensor

    def normalized(self, start: int, stop: int) -> Tensor:
        """These frames of `whisper.audio.log_mel_spectrogram`, on the model's device."""
        part = send(self.logarithms[:, start:stop], self.floor.device)
        return part.clamp(min=self.floor).add_(4.0).div_(4.0)


@dataclass(frozen=True)
class Mel:
    """Frames `start` to `stop` of a spectrogram, followed by zeros up to `length` frames.

    OpenAI's `transcribe` handles this object in the caller's thread as if it were a tensor: it
    slices it, pads it and moves it to the device. Nothing is computed or copied until the engine's
    thread calls `tensor()`.
    """

    spectrogram: Spectrogram
    start: int
    stop: int
    length: int

    @classmethod
    def of(cls, spectrogram: Spectrogram) -> Self:
        """The whole spectrogram."""
        frames = spectrogram.logarithms.shape[1]
        return cls(spectrogram, 0, frames, frames)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.spectrogram.logarithms), self.length

    def __getitem__(self, index: tuple[slice, slice]) -> Self:
        """`mel[:, start:stop]`. Raises IndexError for any other index, and for a padded window."""
        if self.length != self.stop - self.start:
            raise IndexError("a padded window cannot be sliced")
        mels, frames = index
        start, stop, step = frames.indices(self.stop - self.start)
        if mels != slice(None) or step != 1:
            raise IndexError(
                f"only frames next to each other can be sliced, not {index}"
            )
        first = self.start + start
        stop = max(start, stop)
        return type(self)(self.spectrogram, first, self.start + stop, stop - start)

    def padded(self, length: int) -> Self:
        """`whisper.audio.pad_or_trim`"""
        stop = min(self.stop, self.start + length)
        return type(self)(self.spectrogram, self.start, stop, length)

    def to(self, _: torch.device | torch.dtype) -> Self:
        """The engine chooses device and precision, so this returns the object itself."""
        return self

    def tensor(self) -> Tensor:
        """Shape (mels, length), in fp32 on the model's device."""
        frames = self.spectrogram.normalized(self.start, self.stop)
        return F.pad(frames, (0, self.length - frames.shape[1]))


class Spectrograms:
    """Computes spectrograms with `n_mels` channels on `device`.

    device_bytes: memory that all spectrograms in use may take on the device; any further ones are
        stored on the host
    """

    def __init__(self, n_mels: int, device: torch.device, device_bytes: int) -> None:
        self._n_mels = n_mels
        self._device = device
        self._device_bytes = device_bytes
        self._on_device: weakref.WeakSet[Spectrogram] = weakref.WeakSet()

    def in_pieces(
        self, audio: np.ndarray, padding: int
    ) -> Generator[None, None, Spectrogram]:
        """Yields after each piece, and returns the spectrogram of `audio` followed by zeros.

        audio: waveform at 16 kHz, float32 or int16, shape (samples,)
        padding: number of zeros, at least half an FFT window, so that nothing but zeros is
            reflected at the end of the signal (`whisper.transcribe` always adds 30 s)

        Raises ValueError for a shorter padding.
        """
        if padding < _MARGIN:
            raise ValueError(f"padding must be at least {_MARGIN} samples")
        device = self._device
        window = torch.hann_window(N_FFT, device=device)
        filters = mel_filters(device, self._n_mels)
        frames = (audio.shape[-1] + padding) // HOP_LENGTH
        spectrogram = self._room_for(frames)
        maximum = torch.full((), -torch.inf, device=device)
        for start in range(0, frames, PIECE_FRAMES):
            end = min(start + PIECE_FRAMES, frames)
            into = spectrogram.logarithms[:, start:end]
            samples = _samples_for_frames(audio, start, end, device)
            maximum = torch.maximum(maximum, _piece(samples, window, filters, into))
            # Between the pieces, those of other recordings are computed: keep nothing meanwhile.
            del samples
            yield
        spectrogram.floor.copy_(maximum - 8.0)
        return spectrogram

    def _room_for(self, frames: int) -> Spectrogram:
        """A spectrogram whose values are still to be written."""
        taken = sum(other.logarithms.nbytes for other in [*self._on_device])
        fits = taken + 4 * self._n_mels * frames <= self._device_bytes
        place = self._device if fits else torch.device("cpu")
        spectrogram = Spectrogram(
            torch.empty(self._n_mels, frames, device=place),
            torch.empty((), device=self._device),
        )
        if fits:
            self._on_device.add(spectrogram)
        return spectrogram


def _piece(samples: Tensor, window: Tensor, filters: Tensor, into: Tensor) -> Tensor:
    """The logarithms of one piece, which are written; returns their maximum, shape ()."""
    stft = torch.stft(
        *(samples, N_FFT, HOP_LENGTH),
        window=window,
        center=False,
        return_complex=True,
    )
    magnitudes = stft.abs() ** 2
    piece = torch.clamp(filters @ magnitudes, min=1e-10).log10()
    into.copy_(piece)
    return piece.max()


def _samples_for_frames(
    audio: np.ndarray, start: int, end: int, device: torch.device
) -> Tensor:
    """What `torch.stft(center=True)` would read for frames `start` to `end`.

    Frame i is centred at sample i * HOP_LENGTH.
    """
    first = start * HOP_LENGTH - _MARGIN
    last = (end - 1) * HOP_LENGTH + _MARGIN
    # The array is copied because PyTorch warns when it is given one that is read-only.
    samples = torch.from_numpy(np.array(audio[max(first, 0) : last])).to(device)
    if samples.dtype == torch.int16:
        # The scale is that of `whisper.audio.load_audio`. Integers travel at half the size.
        samples = samples.float().div_(32768.0)
    samples = samples.float()
    samples = F.pad(samples, (0, last - max(first, 0) - samples.shape[-1]))
    if first < 0:
        samples = F.pad(samples[None], (-first, 0), mode="reflect")[0]
    return samples
