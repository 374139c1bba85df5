"""The least time that a machine's arithmetic and memory allow for the parts of Whisper."""

from dataclasses import dataclass

from whisper.model import ModelDimensions


@dataclass(frozen=True)
class Machine:
    """flops: floating-point operations a second; bandwidth: bytes read a second"""

    flops: float
    bandwidth: float


class Work:
    """Seconds at least for the engine's parts.

    number_bytes: of a weight, and of a number in the key/value stores
    """

    def __init__(
        self, dims: ModelDimensions, machine: Machine, number_bytes: int
    ) -> None:
        self._machine = machine
        self._number_bytes = number_bytes
        audio, state = dims.n_audio_ctx, dims.n_audio_state
        convolutions = 2 * 3 * state * (2 * audio * dims.n_mels + audio * state)
        layer = 2 * audio * 12 * state**2 + 4 * audio**2 * state
        self._encoder = convolutions + dims.n_audio_layer * layer
        text = dims.n_text_state
        self._cross_keys_values = 4 * dims.n_text_layer * audio * state * text
        # Projections of self-attention, query and output of cross-attention, both layers of the MLP.
        self._weights = dims.n_text_layer * 14 * text**2 + dims.n_vocab * text
        # Of one token, or one frame of audio: its keys and values in all layers.
        self._token_bytes = 2 * dims.n_text_layer * text * number_bytes
        self._audio = audio

    def encode(self, windows: int) -> float:
        return windows * self._encoder / self._machine.flops

    def cross_keys_values(self) -> float:
        """Of one window."""
        return self._cross_keys_values / self._machine.flops

    def step(self, windows: int, rows: int, columns: int = 0) -> float:
        """One token for each of these rows.

        columns: tokens of each window's self-attention store that are read; 0: they do not count
        """
        arithmetic = 2 * rows * self._weights / self._machine.flops
        weights = self._number_bytes * self._weights / self._machine.bandwidth
        read = windows * (self._audio + columns) * self._token_bytes
        return max(arithmetic, weights) + read / self._machine.bandwidth
