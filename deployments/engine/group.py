"""Which windows take a step together, and how their beams are laid out as the rows of one batch."""

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from deployments.engine.attention import Slots
from deployments.engine.plan import Plan
from deployments.engine.rules import Vocabulary
from deployments.engine.search import Selection


class Group:
    """The windows of a step and what holds for their rows while they stay together: a beam of a window is a
    row, ordered by window.

    width: the most beams of a window; a grid has shape (windows, width)
    grid: where each row stands in it, flattened; None if every place is taken
    real: the places that rows take, shape (windows, width)
    sampling: the rows that are drawn, shape (drawn rows,); None if there are none
    temperatures: of those, shape (drawn rows,)
    competes, finished_needed: windows of beam search, and what ends each; shape (windows,)
    suppressed: indices of tokens that must not come into flattened logits
    first: it is their first step
    """

    def __init__(
        self,
        slots: Sequence[int],
        plans: Sequence[Plan],
        vocabulary: Vocabulary,
        device: torch.device,
        *,
        first: bool,
    ) -> None:
        def tensor(values: Sequence[float], dtype: torch.dtype = torch.long) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        rows = [(window, b) for window, p in enumerate(plans) for b in range(p.width)]
        by_row = [plans[window] for window, _ in rows]
        self.slots = Slots.on(device, slots)
        self.width = max(plan.width for plan in plans)
        self.widths = tensor([plan.width for plan in plans])
        self.row_window = tensor([window for window, _ in rows])
        self.row_slot = self.slots.index[self.row_window]
        self.row_beam = tensor([beam for _, beam in rows])
        self.row_width = self.widths[self.row_window]
        whole = len(rows) == len(plans) * self.width
        self.grid = None if whole else self.row_window * self.width + self.row_beam
        self.real = torch.arange(self.width, device=device) < self.widths[:, None]

        competing = [plan.finished_needed is not None for plan in plans]
        self.any_beams, self.any_rows = any(competing), not all(competing)
        self.competes = tensor(competing, torch.bool)
        self.finished_needed = tensor([plan.finished_needed or 0 for plan in plans])
        drawn = [row for row, plan in enumerate(by_row) if plan.samples]
        self.sampling = tensor(drawn) if drawn else None
        self.temperatures = tensor(
            [by_row[row].temperature for row in drawn], torch.float32
        )

        self.timestamps = tensor(
            [plan.initial_timestamps is not None for plan in by_row], torch.bool
        )
        self.initial_timestamps = None
        if first:
            self.initial_timestamps = tensor(
                [p.initial_timestamps or 0 for p in by_row]
            )
        self.suppressed = tensor(
            [
                row * vocabulary.size + token
                for row, plan in enumerate(by_row)
                for token in plan.suppressed + (plan.suppressed_first if first else [])
            ]
        )

    def to_grid(self, x: Tensor, filler: float = 0) -> Tensor:
        """(rows, ...) to (windows, width, ...)."""
        shape = (len(self.slots.numbers), self.width, *x.shape[1:])
        if self.grid is None:
            return x.reshape(shape)
        places = x.new_full((shape[0] * shape[1], *x.shape[1:]), filler)
        return places.index_copy_(0, self.grid, x).view(shape)

    def from_grid(self, x: Tensor) -> Tensor:
        """(windows, width, ...) to (rows, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.grid is None else flat[self.grid]

    def merged(self, beams: Selection, rows: Selection) -> Selection:
        """Each window's part from the selection of its kind."""
        chosen = (
            torch.where(self.competes[:, None], of_beams, of_rows)
            for of_beams, of_rows in zip(astuple(beams), astuple(rows), strict=True)
        )
        return Selection(*chosen)
