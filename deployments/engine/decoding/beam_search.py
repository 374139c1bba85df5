"""How the next tokens are chosen: beam search for some windows, greedy choice or sampling for others.

Source: `GreedyDecoder`, `BeamSearchDecoder` and `MaximumLikelihoodRanker` in whisper/decoding.py. Where upstream
keeps whole sequences, here each step writes down tokens, parents and what has finished; sequences are read
from that once the window is done.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """One step's outcome; what goes on has shape (windows, beams).

    finished_scores, finished_parents: of the sequences that have just ended, the best first, NaN and 0
        behind them; shape (windows, beams)
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor
    finished_scores: Tensor
    finished_parents: Tensor


def select_beams(
    scores: Tensor, logprobs: Tensor, tokens: Tensor, widths: Tensor, eot: int
) -> Selection:
    """One step of beam search.

    scores: of the beams so far, shape (windows, sources); -inf for a beam that is none
    logprobs, tokens: candidates of each beam, best first, at least one more than the widest window has
        beams; shape (windows, sources, candidates)
    widths: beams of each window, shape (windows,)

    Of the candidates in order of score those that do not end go on, until the window has its beams, and
    those that end before that are finished. Ties keep the order of beams and candidates.
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
    """The places of the first `count` True in each row, in order; any others behind them."""
    return (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]


def select_rows(
    scores: Tensor, logprobs: Tensor, tokens: Tensor, ended: Tensor, eot: int
) -> Selection:
    """One step of rows that do not compete: greedy choice, or samples. All of shape (windows, rows).

    ended: rows that have come to `eot`; they stay there, and their scores stand
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
class Trace:
    """What the steps of one window have written down, on the host.

    tokens, parents, finished_scores, finished_parents: shape (steps, beams)
    scores: of the beams that are left, shape (beams,)
    """

    tokens: np.ndarray
    parents: np.ndarray
    finished_scores: np.ndarray
    finished_parents: np.ndarray
    scores: np.ndarray

    def sequence(self, step: int, beam: int) -> list[int]:
        """The tokens that lead to this beam after this step (-1: none)."""
        tokens: list[int] = []
        while step >= 0:
            tokens.append(int(self.tokens[step, beam]))
            beam = int(self.parents[step, beam])
            step -= 1
        return tokens[::-1]

    def finished_beams(self, limit: int) -> list[tuple[list[int], float]]:
        """Sequences that beam search has finished, in order, at most `limit`; if they are fewer than the
        beams, completed by the best ones that are left. Without `eot`; with their scores.
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
        """The sequences of rows that did not compete, up to `eot`, with their scores."""
        sequences = (
            self.sequence(len(self.tokens) - 1, row)
            for row in range(self.tokens.shape[1])
        )
        return [
            (tokens[: tokens.index(eot)] if eot in tokens else tokens, float(score))
            for tokens, score in zip(sequences, self.scores, strict=True)
        ]
