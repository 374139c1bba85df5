"""The least time that a machine's arithmetic and memory allow for the parts of Whisper."""

from dataclasses import dataclass

from whisper.model import ModelDimensions


@dataclass(frozen=True)
class Machine:
    """flops: floating-point operations a second; bandwidth: bytes read a second"""

    flops: float
    bandwidth: float


class Work:
    """The least seconds that the engine's parts take.

    number_bytes: size of a weight, and of a number in the key/value stores
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
        # Projections of self-attention, query and output of cross-attention, and the MLP.
        self._weights = dims.n_text_layer * 14 * text**2 + dims.n_vocab * text
        # Keys and values of one token, or of one frame of audio, in all layers.
        self._token_bytes = 2 * dims.n_text_layer * text * number_bytes
        self._audio = audio

    def encode(self, windows: int) -> float:
        return windows * self._encoder / self._machine.flops

    def cross_keys_values(self) -> float:
        """For one window."""
        return self._cross_keys_values / self._machine.flops

    def step(self, windows: int, rows: int, columns: int = 0) -> float:
        """One token for each of these rows.

        columns: how many tokens of each window's self-attention store are read; 0: not counted
        """
        arithmetic = 2 * rows * self._weights / self._machine.flops
        weights = self._number_bytes * self._weights / self._machine.bandwidth
        read = windows * (self._audio + columns) * self._token_bytes
        return max(arithmetic, weights) + read / self._machine.bandwidth
