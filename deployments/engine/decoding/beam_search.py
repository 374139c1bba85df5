"""How the next tokens are chosen: by beam search, greedily, or by sampling.

Upstream keeps whole sequences. Here each step records tokens, parents and finished sequences, and
the sequences are read from these backpointers once the window is done.

Source: `GreedyDecoder` and `BeamSearchDecoder` in whisper/decoding.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What one step has chosen. All of shape (windows, beams).

    tokens, parents, scores: of the beams that go on; a parent is the number of a beam before
    finished_scores, finished_parents: of the sequences that have just ended, the best first,
        followed by NaN and 0
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    finished_scores: Tensor
    finished_parents: Tensor

    def merged(self, other: "Selection", mine: Tensor) -> "Selection":
        """This selection for the windows in `mine`, the other one for the rest.

        mine: booleans, shape (windows,)
        """
        mine = mine[:, None]
        return Selection(
            torch.where(mine, self.tokens, other.tokens),
            torch.where(mine, self.parents, other.parents),
            torch.where(mine, self.scores, other.scores),
            torch.where(mine, self.finished_scores, other.finished_scores),
            torch.where(mine, self.finished_parents, other.finished_parents),
        )


def select_beams(
    scores: Tensor, logprobs: Tensor, tokens: Tensor, widths: Tensor, eot: int
) -> Selection:
    """One step of beam search.

    scores: of the beams so far, shape (windows, sources); -inf for places without a beam
    logprobs, tokens: candidates of each beam, the best first, shape (windows, sources, candidates);
        one more of them than the widest window has beams
    widths: number of beams of each window, shape (windows,)

    The candidates of a window are taken in order of score. Those that are not `eot` go on, until
    there are as many as the window has beams. Those that are `eot` and come before that are
    finished. Ties keep the order of beams and candidates.

    Source: `BeamSearchDecoder.update` in whisper/decoding.py.
    """
    count = logprobs.shape[-1]
    totals = (scores[:, :, None] + logprobs).flatten(1)
    totals, order = totals.sort(dim=1, descending=True, stable=True)
    tokens = tokens.flatten(1).gather(1, order)
    parents = order // count
    ends = tokens == eot
    going_on = (~ends).cumsum(1)
    kept = ~ends & (going_on <= widths[:, None])
    finished = ends & (going_on < widths[:, None])

    width = count - 1
    beams = _first(kept, width)
    done = _first(finished, width)
    has_finished = finished.gather(1, done)
    return Selection(
        tokens.gather(1, beams),
        parents.gather(1, beams),
        totals.gather(1, beams),
        totals.gather(1, done).masked_fill(~has_finished, torch.nan),
        parents.gather(1, done).masked_fill(~has_finished, 0),
    )


def _first(chosen: Tensor, count: int) -> Tensor:
    """The places of the first `count` True values of each row, in order, then those of others."""
    return (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]


def select_rows(
    scores: Tensor, logprobs: Tensor, tokens: Tensor, ended: Tensor, eot: int
) -> Selection:
    """One step of rows that do not compete: greedy choice, or samples.

    All tensors have shape (windows, rows). ended: rows that have sampled `eot`; they sample it
    again, and their scores do not change

    Source: `GreedyDecoder.update` in whisper/decoding.py.
    """
    parents = torch.arange(scores.shape[1], device=scores.device)
    return Selection(
        tokens.masked_fill(ended, eot),
        parents.expand_as(tokens),
        torch.where(ended, scores, scores + logprobs),
        torch.full_like(scores, torch.nan),
        torch.zeros_like(tokens),
    )


@dataclass(frozen=True)
class Backpointers:
    """What the steps of one window have recorded, on the host.

    tokens, parents, finished_scores, finished_parents: as in `Selection`, shape (steps, beams)
    scores: of the beams after the last step, shape (beams,)
    """

    tokens: np.ndarray
    parents: np.ndarray
    finished_scores: np.ndarray
    finished_parents: np.ndarray
    scores: np.ndarray

    def sequence(self, step: int, beam: int) -> list[int]:
        """The tokens that lead to this beam after this step; for step -1 there are none."""
        tokens: list[int] = []
        while step >= 0:
            tokens.append(int(self.tokens[step, beam]))
            beam = int(self.parents[step, beam])
            step -= 1
        return tokens[::-1]

    def finished_beams(self, limit: int) -> list[tuple[list[int], float]]:
        """The sequences of a beam search, without `eot`, with their scores.

        These are the first `limit` finished sequences. If there are fewer than beams, the best of
        the unfinished ones are added.

        Source: `BeamSearchDecoder.finalize` in whisper/decoding.py.
        """
        found: list[tuple[list[int], float]] = []
        steps, width = self.tokens.shape
        for step in range(steps):
            scores = self.finished_scores[step]
            for place in np.flatnonzero(~np.isnan(scores)):
                if len(found) < limit:
                    parent = int(self.finished_parents[step, place])
                    found.append(
                        (self.sequence(step - 1, parent), float(scores[place]))
                    )
        if len(found) < width:
            for beam in np.argsort(self.scores)[::-1][: width - len(found)]:
                left = self.sequence(steps - 1, int(beam))
                found.append((left, float(self.scores[beam])))
        return found

    def rows(self, eot: int) -> list[tuple[list[int], float]]:
        """The sequences of rows that do not compete, up to `eot`, with their scores."""
        sequences = (
            self.sequence(len(self.tokens) - 1, row)
            for row in range(self.tokens.shape[1])
        )
        return [
            (tokens[: tokens.index(eot)] if eot in tokens else tokens, float(score))
            for tokens, score in zip(sequences, self.scores, strict=True)
        ]
