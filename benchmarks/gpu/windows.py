"""Windows that never end, to time the parts of their decoding one by one."""

import torch
from torch import Tensor
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from benchmarks.gpu.run import Run
from deployments.engine.parts import Parts
from deployments.engine.upstream.decoding import Plan

_A_WORD = 2425


class Windows:
    """An engine's parts on the run's device, decoding windows of random audio with `models.random_model`."""

    def __init__(self, model: Whisper, run: Run, slots: int) -> None:
        self.parts = Parts.of(model, run.device, run.dtype, slots=slots)
        shape = (model.dims.n_audio_ctx, model.dims.n_audio_state)
        self._features = torch.randn(shape, device=run.device).to(run.dtype)
        for slot in range(slots):
            self.write_audio(slot)
        self.slots: list[int] = []

    @torch.inference_mode()
    def encode(self, mel: Tensor) -> None:
        """mel: shape (windows, mels, frames)"""
        self.parts.encoder(mel)

    @torch.inference_mode()
    def write_audio(self, slot: int = 0) -> None:
        """Compute cross-attention's keys and values of one window and write them to its slot."""
        self.parts.decoder.listen(slot, self._features)

    @torch.inference_mode()
    def begin(self, windows: int, beams: int, prompt: int = 0) -> None:
        """Read the prompts of this many windows, which take the steps from now on."""
        options = DecodingOptions(
            language="en",
            beam_size=beams if beams > 1 else None,
            prompt=[_A_WORD] * prompt or None,
        )
        plans = [Plan(self.parts.facts, options) for _ in range(windows)]
        self.slots = [*range(windows)]
        self.parts.batch.join(self.slots, plans, self.slots)

    @torch.inference_mode()
    def step(self, windows: int | None = None) -> None:
        """One more token for all windows, or for the first `windows` of them."""
        self.parts.batch.step(self.slots[:windows])
