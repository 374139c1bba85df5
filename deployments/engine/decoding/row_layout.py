"""Which windows take a step together, and how their beams are laid out as the rows of one batch."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deployments.engine.decoding.beam_search import Selection
from deployments.engine.decoding.logit_filters import Vocabulary
from deployments.engine.model.kv_cache import Slots
from deployments.engine.transfer import to_device
from deployments.engine.upstream.decoding import Plan

# Nearly all requests suppress the same tokens, so a few lists serve them all.
_KNOWN_TOKEN_LISTS = 64


class TokenLists:
    """Lists of tokens as tensors on a device. The lists used last stay there and are not copied again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        copied = functools.partial(to_device, device=device)
        self.tensor = functools.lru_cache(_KNOWN_TOKEN_LISTS)(copied)


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
        token_lists: TokenLists,
        *,
        first: bool,
    ) -> None:
        device = token_lists.device
        widths = np.array([plan.width for plan in plans])
        row_window = np.repeat(np.arange(len(plans)), widths)
        row_beam = np.concatenate([np.arange(width) for width in widths])
        finished_needed = np.array([plan.finished_needed or 0 for plan in plans])
        timestamps = np.array([plan.initial_timestamps is not None for plan in plans])
        initial = np.array([plan.initial_timestamps or 0 for plan in plans])
        drawn = np.array([plan.samples for plan in plans])
        drawn_rows = np.flatnonzero(drawn[row_window])

        windows_by_list: dict[tuple[int, ...], list[int]] = {}
        for window, plan in enumerate(plans):
            windows_by_list.setdefault(plan.suppressed(first=first), []).append(window)
        rows_by_list = [
            np.flatnonzero(np.isin(row_window, windows))
            for windows in windows_by_list.values()
        ]

        self.slots = Slots.on(device, slots)
        self.width = int(widths.max())
        # All integers travel in one copy, because a copy costs far more than the bytes in it.
        (
            self.widths,
            self.finished_needed,
            self.row_window,
            self.row_beam,
            self.row_width,
            with_timestamps,
            initial_timestamps,
            sampling,
            *list_rows,
        ) = _in_one_copy(
            device,
            widths,
            finished_needed,
            row_window,
            row_beam,
            widths[row_window],
            timestamps[row_window],
            initial[row_window],
            drawn_rows,
            *rows_by_list,
        )
        self.row_slot = self.slots.index[self.row_window]
        whole = len(row_window) == len(plans) * self.width
        self.grid = None if whole else self.row_window * self.width + self.row_beam
        self.real = torch.arange(self.width, device=device) < self.widths[:, None]

        competing = finished_needed > 0
        self.any_beams, self.any_rows = competing.any(), not competing.all()
        self.competes = self.finished_needed > 0
        self.sampling: Tensor | None = None
        self.temperatures: Tensor | None = None
        if len(drawn_rows):
            temperatures = [plans[w].temperature for w in row_window[drawn_rows]]
            self.sampling = sampling
            self.temperatures = to_device(temperatures, device, torch.float32)

        self.timestamps = with_timestamps > 0
        self.initial_timestamps = initial_timestamps if first else None
        self.suppressed = torch.cat(
            [
                (rows[:, None] * vocabulary.size + token_lists.tensor(tokens)).flatten()
                for rows, tokens in zip(list_rows, windows_by_list, strict=True)
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
            for of_beams, of_rows in zip(
                vars(beams).values(), vars(rows).values(), strict=True
            )
        )
        return Selection(*chosen)


def _in_one_copy(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Each array as a tensor of integers on the device."""
    whole = to_device(np.concatenate(arrays), device)
    return [*whole.split([len(array) for array in arrays])]
