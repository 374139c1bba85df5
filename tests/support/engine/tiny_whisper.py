"""A Whisper of random weights that decodes a window in milliseconds, and recordings for it."""

from dataclasses import replace

import numpy as np
import torch
from whisper.audio import SAMPLE_RATE
from whisper.decoding import DecodingResult
from whisper.model import ModelDimensions, Whisper

from tests.support.engine import devices

DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=32,
    n_audio_head=2,
    n_audio_layer=1,
    n_vocab=51865,
    n_text_ctx=448,
    n_text_state=32,
    n_text_head=2,
    n_text_layer=1,
)
TIMESTAMP_BEGIN = 50364
_A_WORD = 2425


def tiny_whisper() -> Whisper:
    torch.manual_seed(1)
    model = Whisper(replace(DIMENSIONS)).eval()
    # Upstream leaves this parameter uninitialised for the checkpoint to fill.
    torch.nn.init.normal_(model.decoder.positional_embedding)
    return devices.placed(model)


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise: int16, at 16 kHz, shape (samples,)."""
    generator = np.random.default_rng(seed)
    return generator.integers(
        -9000, 9000, round(seconds * SAMPLE_RATE), dtype=np.int16, endpoint=True
    )


def sounds(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones, noise and near silence, no two windows alike: int16, at 16 kHz."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    time = np.arange(samples) / SAMPLE_RATE
    audio = np.zeros(samples)
    start = 0
    while start < samples:
        end = min(samples, start + int(generator.integers(2000, 40_000)))
        pitch, loudness = generator.uniform(80, 6000), generator.choice([0, 0.1, 0.5])
        hiss = generator.choice([0.001, 0.005, 0.03])
        audio[start:end] = loudness * np.sin(2 * np.pi * pitch * time[start:end])
        audio[start:end] += hiss * generator.normal(size=end - start)
        start = end
    return (audio.clip(-1, 1) * 32767).astype(np.int16)


def as_float(audio: np.ndarray) -> np.ndarray:
    """int16 to float32, as `whisper.load_audio` does it."""
    return audio.astype(np.float32) / 32768.0


def window(*segments: tuple[float, float], silent: bool = False) -> DecodingResult:
    """What `decode` gives for a window with these segments, in seconds from its start."""
    tokens = [
        token
        for start, end in segments
        for token in (_timestamp(start), _A_WORD, _timestamp(end))
    ]
    return DecodingResult(
        audio_features=torch.zeros(1),
        language="en",
        tokens=tokens,
        text=" word" * len(segments),
        avg_logprob=-2.0 if silent else -0.1,
        no_speech_prob=0.9 if silent else 0.1,
        temperature=0.0,
        compression_ratio=1.0,
    )


def _timestamp(seconds: float) -> int:
    return TIMESTAMP_BEGIN + round(seconds * 50)
