"""The log-mel spectrogram of `whisper.audio`, computed in pieces, so that its memory no longer grows with a
complex spectrum of the whole recording (an hour: 1.9 GB at once, four hours: 8 GB).
"""

from collections.abc import Generator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters

PIECE_FRAMES = 30_000  # five minutes; the complex spectrum of a piece takes 48 MB
_MARGIN = N_FFT // 2


def log_mel_spectrogram(
    audio: np.ndarray, n_mels: int = 80, padding: int = 0
) -> Tensor:
    """The result of `whisper.audio.log_mel_spectrogram`, of shape (n_mels, frames).

    audio: waveform at 16 kHz, float32 or int16, shape (samples,)
    padding: zero samples to add on the right; at least half an FFT window, so that the end of the
        signal reflects nothing but zeros (`whisper.transcribe` always adds 30 s)
    """
    pieces = in_pieces(audio, n_mels, padding, torch.device("cpu"))
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def in_pieces(
    audio: np.ndarray, n_mels: int, padding: int, device: torch.device
) -> Generator[None, None, Tensor]:
    """`log_mel_spectrogram`, computed on `device`; yields after each piece and returns the result, on the CPU.

    Only the clamp to the maximum of the whole recording needs every frame at once.
    """
    if padding < _MARGIN:
        raise ValueError(f"padding must be at least {_MARGIN} samples")
    window = torch.hann_window(N_FFT, device=device)
    filters = mel_filters(device, n_mels)
    frames = (audio.shape[-1] + padding) // HOP_LENGTH
    log_spec = torch.empty(n_mels, frames)
    for start in range(0, frames, PIECE_FRAMES):
        end = min(start + PIECE_FRAMES, frames)
        samples = _samples_for_frames(audio, start, end).to(device)
        stft = torch.stft(
            samples, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True
        )
        magnitudes = stft.abs() ** 2
        log_spec[:, start:end] = torch.clamp(filters @ magnitudes, min=1e-10).log10()
        yield
    log_spec.clamp_(min=log_spec.max() - 8.0)
    return log_spec.add_(4.0).div_(4.0)


def _samples_for_frames(audio: np.ndarray, start: int, end: int) -> Tensor:
    """What `torch.stft(center=True)` would read for frames `start` to `end`: frame i is centred at i hops."""
    first = start * HOP_LENGTH - _MARGIN
    last = (end - 1) * HOP_LENGTH + _MARGIN
    samples = torch.from_numpy(_as_float32(audio[max(first, 0) : last]))
    samples = F.pad(samples, (0, last - max(first, 0) - samples.shape[-1]))
    if first < 0:
        samples = F.pad(samples[None], (-first, 0), mode="reflect")[0]
    return samples


def _as_float32(samples: np.ndarray) -> np.ndarray:
    """Scaled as in `whisper.audio.load_audio`. A piece at a time, int16 recordings stay at half the size."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768.0
    return samples.astype(np.float32)
