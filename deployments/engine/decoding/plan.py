"""How a window is to be decoded, and what has come of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.engine.decoding.beam_search import Backpointers

# Draws at temperature > 0 come from generators seeded by this constant plus the number of the
# decoding in its request, so they never depend on what else is in the batch.
SEED = 0


@dataclass(frozen=True)
class DecodePlan:
    """How to decode one window.

    prompt: the tokens that are given, of which the one at `sot_index` starts the transcript
    no_speech: the token whose probability at `sot_index` tells that nobody speaks
    width: number of beams, or of samples
    steps: the most tokens that may be sampled
    temperature: of the sampling; 0 for a beam search or a greedy choice
    finished_needed: finished sequences that end a beam search; None if the rows do not compete
    initial_timestamps: how many timestamps may come first; None if timestamps are not asked for
    suppressed: tokens that must not be sampled
    suppressed_first: tokens that must not be sampled as the window's first one either
    """

    prompt: tuple[int, ...]
    sot_index: int
    no_speech: int
    width: int
    steps: int
    temperature: float
    finished_needed: int | None
    initial_timestamps: int | None
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0

    def forbidden(self, *, first: bool) -> tuple[int, ...]:
        """The tokens that must not be sampled now. first: as the window's first token"""
        return self.suppressed + self.suppressed_first if first else self.suppressed

    def uniforms(self, number: int) -> Tensor:
        """The random draws in [0, 1) of the request's decoding `number`.

        Shape (steps, width), in fp64 on the CPU.
        """
        generator = torch.Generator().manual_seed(SEED + number)
        return torch.rand(
            self.steps, self.width, generator=generator, dtype=torch.float64
        )


@dataclass(frozen=True)
class Outcome:
    """What the decoding of a window has given.

    no_speech_prob: probability that nobody speaks in it
    """

    backpointers: Backpointers
    no_speech_prob: float
