"""Windows that never end, to time the parts of their decoding one by one."""

import torch
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from benchmarks.gpu.run import Run
from deployments.engine.model_runner import ModelRunner
from deployments.engine.upstream.decoding import plan_for

_A_WORD = 2425


class Windows:
    """An engine's `ModelRunner` on the run's device, with windows of random audio.

    The model is one of `models.random_model`.
    """

    def __init__(self, model: Whisper, run: Run, slots: int) -> None:
        self.runner = ModelRunner.of(model, run.device, run.dtype, slots=slots)
        shape = (model.dims.n_audio_ctx, model.dims.n_audio_state)
        self._features = torch.randn(shape, device=run.device).to(run.dtype)
        for slot in range(slots):
            self.write_audio(slot)
        self.slots: list[int] = []

    @torch.inference_mode()
    def encode(self, mel: Tensor) -> None:
        """mel: shape (windows, mels, frames)"""
        self.runner.encoder(mel)

    @torch.inference_mode()
    def write_audio(self, slot: int = 0) -> None:
        """Compute cross-attention's keys and values of one window and write them to its slot."""
        self.runner.decoder.write_cross_kv(slot, self._features)

    @torch.inference_mode()
    def begin(self, windows: int, beams: int, prompt: int = 0) -> None:
        """Read the prompts of this many windows, which take the steps from now on."""
        options = DecodingOptions(
            language="en",
            beam_size=beams if beams > 1 else None,
            prompt=[_A_WORD] * prompt or None,
        )
        plans = [plan_for(self.runner.facts, options) for _ in range(windows)]
        self.slots = [*range(windows)]
        self.runner.batch.join(self.slots, plans, self.slots)

    @torch.inference_mode()
    def step(self, windows: int | None = None) -> None:
        """One more token for all windows, or for the first `windows` of them."""
        self.runner.batch.step(self.slots[:windows])
