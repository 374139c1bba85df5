import inspect
from collections.abc import Generator
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from whisper import audio as official
from whisper.audio import HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE

from deployments.engine.upstream import log_mel
from deployments.engine.upstream.log_mel import (
    PIECE_FRAMES,
    Mel,
    Spectrogram,
    Spectrograms,
)
from tests.support.engine import devices
from tests.support.engine.tiny_whisper import as_float

SMALL_PIECE_FRAMES = 4000
SMALL_PIECE = SMALL_PIECE_FRAMES * HOP_LENGTH
LENGTHS = [
    *(0, 1, 2, 159, 160, 161, 199, 200, 201, 319, 320, 321, 399, 400, 401),
    *(16_000, 16_079, 47_999, N_SAMPLES - 1, N_SAMPLES, N_SAMPLES + 1),
]
# The padding counts: the spectrogram of a recording 30 s shorter than a piece fills the piece.
LENGTHS_AROUND_PIECES = [
    *(SMALL_PIECE - N_SAMPLES + extra for extra in (-1, 0, 1, HOP_LENGTH)),
    *(SMALL_PIECE - 1, SMALL_PIECE, SMALL_PIECE + 12_345, 2 * SMALL_PIECE + 3),
]


pytestmark = pytest.mark.usefixtures("inference_mode")


def noise(samples: int) -> np.ndarray:
    generator = np.random.default_rng(samples)
    return generator.integers(-9000, 9000, samples, dtype=np.int16)


def computed(
    audio: np.ndarray, padding: int, n_mels: int = 80, device_bytes: int = 1 << 30
) -> Spectrogram:
    spectrograms = Spectrograms(n_mels, devices.chosen(), device_bytes)
    *_, spectrogram = values_and_return(spectrograms.in_pieces(audio, padding))
    return cast(Spectrogram, spectrogram)


def log_mel_spectrogram(
    audio: np.ndarray, n_mels: int = 80, padding: int = 0
) -> Tensor:
    return Mel.of(computed(audio, padding, n_mels)).tensor().cpu()


def assert_same(ours: Tensor, expected: Tensor) -> None:
    if devices.chosen().type == "cuda":
        # A GPU's transforms round differently.
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)
    else:
        assert torch.equal(ours, expected)


def assert_equal_to_whispers(
    audio: np.ndarray, n_mels: int = 80, padding: int = N_SAMPLES
) -> None:
    """Compare the spectrograms of int16 samples, and of the same samples as float32."""
    expected = official.log_mel_spectrogram(as_float(audio), n_mels, padding)
    for samples in (audio, as_float(audio)):
        assert_same(log_mel_spectrogram(samples, n_mels, padding), expected)


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_spectrogram_in_one_piece_is_whispers_to_the_last_bit(samples: int) -> None:
    assert_equal_to_whispers(noise(samples))


@pytest.mark.parametrize("samples", LENGTHS_AROUND_PIECES)
def test_a_spectrogram_in_pieces_is_whispers_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", SMALL_PIECE_FRAMES)
    assert_equal_to_whispers(noise(samples))


def test_six_minutes_are_whispers_to_the_last_bit() -> None:
    assert_equal_to_whispers(noise(PIECE_FRAMES * HOP_LENGTH + 60 * SAMPLE_RATE + 1))


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("piece_frames", [64, 500, 3001])
def test_the_size_of_a_piece_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch, piece_frames: int, n_mels: int
) -> None:
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", piece_frames)
    assert_equal_to_whispers(noise(100_123), n_mels)


@pytest.mark.parametrize("piece_frames", [2, 7])
def test_even_pieces_of_a_few_frames_agree(
    monkeypatch: pytest.MonkeyPatch, piece_frames: int
) -> None:
    # Not equal to the last bit: products with so few columns are summed in another order.
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", piece_frames)
    audio = noise(5000)
    expected = official.log_mel_spectrogram(as_float(audio), 80, 400)
    torch.testing.assert_close(
        log_mel_spectrogram(audio, 80, 400), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("padding", [200, 201, 399, 400, 12_345])
def test_any_padding_of_half_a_window_or_more_gives_whispers_result(
    padding: int,
) -> None:
    for samples in (161, 201, 20_000):
        assert_equal_to_whispers(noise(samples), padding=padding)


@pytest.mark.parametrize("padding", [0, 199])
def test_less_padding_is_refused(padding: int) -> None:
    with pytest.raises(ValueError, match="at least 200 samples"):
        log_mel_spectrogram(noise(16_000), padding=padding)


def test_silence_and_full_scale_are_no_special_cases() -> None:
    for value in (0, -32768, 32767):
        assert_equal_to_whispers(np.full(30_000, value, dtype=np.int16))


def test_the_loudest_frame_of_another_piece_sets_the_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", 500)
    audio = noise(200_000) // 3000
    audio[-200:] = 30_000
    assert_equal_to_whispers(audio)
    audio = audio[::-1].copy()
    assert_equal_to_whispers(audio)


def test_an_empty_recording_is_a_window_of_silence() -> None:
    spectrogram = log_mel_spectrogram(noise(0), padding=N_SAMPLES)
    assert spectrogram.shape == (80, N_FRAMES)
    assert spectrogram.min() == spectrogram.max()


def test_the_recording_is_left_as_it_is() -> None:
    audio = noise(20_000)
    audio.setflags(write=False)
    for samples in (audio, as_float(audio)):
        before = samples.copy()
        log_mel_spectrogram(samples, padding=N_SAMPLES)
        np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("samples", [0, 100_000, 160_000, 1_000_000])
def test_others_may_have_their_turn_after_each_piece(
    monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", 1000)
    audio = noise(samples)
    spectrograms = Spectrograms(80, devices.chosen(), 1 << 30)
    *turns, result = values_and_return(spectrograms.in_pieces(audio, N_SAMPLES))
    spectrogram = Mel.of(cast(Spectrogram, result))
    assert len(turns) == -(-spectrogram.shape[-1] // 1000)
    expected = official.log_mel_spectrogram(as_float(audio), 80, N_SAMPLES)
    assert_same(spectrogram.tensor().cpu(), expected)


def test_between_its_pieces_a_recording_holds_its_spectrogram_and_little_else() -> None:
    frames = 2 * SMALL_PIECE_FRAMES
    spectrograms = Spectrograms(80, devices.chosen(), 1 << 30)
    pieces = spectrograms.in_pieces(noise(frames * HOP_LENGTH), N_SAMPLES)
    next(pieces)
    held = inspect.getgeneratorlocals(pieces)
    tensors = {id(t.untyped_storage()): t for t in held.values() if torch.is_tensor(t)}
    whole = held["spectrogram"].logarithms
    others = [t for t in tensors.values() if t.data_ptr() != whole.data_ptr()]
    # The window and the filters, and the maximum so far.
    assert sum(t.nbytes for t in others) < 100_000


def test_no_transform_sees_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    transformed = []
    whole_stft = torch.stft

    def stft(samples: Tensor, *args: object, **options: object) -> Tensor:
        transformed.append(samples.numel())
        return whole_stft(samples, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "stft", stft)
    monkeypatch.setattr(log_mel, "PIECE_FRAMES", 1000)
    frames = log_mel_spectrogram(noise(1_000_000), padding=N_SAMPLES).shape[-1]
    assert len(transformed) == -(-frames // 1000)
    # Neighbouring pieces share the window around their border.
    assert max(transformed) <= 1000 * HOP_LENGTH + 400


def test_a_part_is_normalised_by_the_loudest_frame_of_the_whole() -> None:
    audio = noise(200_000) // 3000
    audio[-200:] = 30_000
    whole = official.log_mel_spectrogram(as_float(audio), 80, N_SAMPLES)
    part = Mel.of(computed(audio, N_SAMPLES))[:, 100:700]
    assert_same(part.tensor().cpu(), whole[:, 100:700])


def test_spectrograms_stay_on_the_device_as_long_as_they_fit() -> None:
    device, host = devices.chosen(), devices.CPU
    audio = noise(16_000)
    bytes_of_one = 4 * 80 * (16_000 + N_SAMPLES) // HOP_LENGTH
    spectrograms = Spectrograms(80, device, 2 * bytes_of_one)

    def another() -> Spectrogram:
        *_, spectrogram = values_and_return(spectrograms.in_pieces(audio, N_SAMPLES))
        return cast(Spectrogram, spectrogram)

    kept = [another() for _ in range(3)]
    assert [one.logarithms.device for one in kept] == [device, device, host]
    expected = Mel.of(kept[0]).tensor()
    for one in kept:
        assert one.normalized(0, 10).device == device
        assert torch.equal(Mel.of(one).tensor(), expected)
    del kept[1], one
    assert another().logarithms.device == device


def values_and_return(generator: Generator[None, None, Spectrogram]) -> list[object]:
    """All values that a generator yields, and the one that it returns."""
    values: list[object] = []
    while True:
        try:
            values.append(next(generator))
        except StopIteration as end:
            return [*values, end.value]
