"""Which windows take a step together, and how their beams are laid out as the rows of one batch."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deployments.engine.decoding.logit_filters import Vocabulary
from deployments.engine.decoding.plan import DecodePlan
from deployments.engine.model.slot_index import SlotIndex
from deployments.engine.model.transfer import to_device

# Nearly all requests suppress the same tokens, so a few lists serve them all.
_KNOWN_TOKEN_LISTS = 64


class TokenLists:
    """Lists of tokens as tensors on a device.

    Those used last stay there and are not copied again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        copied = functools.partial(to_device, device=device)
        self.tensor = functools.lru_cache(_KNOWN_TOKEN_LISTS)(copied)


class RowLayout:
    """The windows of a step, and all that stays the same while they take steps together.

    Each beam, or sample, of each window is a row. Rows are ordered by window. A grid is a tensor of
    shape (windows, width, ...), in which narrower windows leave places empty.

    width: the most rows of a window
    widths: rows of each window, shape (windows,)
    row_window, row_slot, row_beam, row_width: for each row, its window, the slot of the window, its
        number in the window, and the window's number of rows; shape (rows,)
    grid: the place of each row in the flattened grid, shape (rows,); None if no place is empty
    real: the places of the grid that are not empty, shape (windows, width)
    sampling: the rows whose tokens are drawn at random, shape (drawn rows,); None if there are none
    temperatures: of those rows, shape (drawn rows,)
    any_beams, any_rows: whether any window is a beam search, and whether any is not
    competes: whether a window is a beam search, shape (windows,)
    finished_needed: finished sequences that end the window's beam search, shape (windows,)
    timestamps: whether the timestamp filter is on, shape (rows,)
    initial_timestamps: how many timestamps may begin a row, shape (rows,); None after the first
        step
    suppressed: indices of suppressed tokens in the flattened logits

    first: whether this is the windows' first sampled token
    """

    def __init__(
        self,
        slots: Sequence[int],
        plans: Sequence[DecodePlan],
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
            windows_by_list.setdefault(plan.forbidden(first=first), []).append(window)
        rows_by_list = [
            np.flatnonzero(np.isin(row_window, windows))
            for windows in windows_by_list.values()
        ]

        self.slots = SlotIndex.on(device, slots)
        self.width = int(widths.max())
        # One copy brings all integers to the device: a copy costs far more than its bytes.
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
        full = len(row_window) == len(plans) * self.width
        self.grid = None if full else self.row_window * self.width + self.row_beam
        self.real = torch.arange(self.width, device=device) < self.widths[:, None]

        competing = finished_needed > 0
        self.any_beams = bool(competing.any())
        self.any_rows = not competing.all()
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
        """(rows, ...) to (windows, width, ...). filler: the value of empty places"""
        shape = (len(self.slots.numbers), self.width, *x.shape[1:])
        if self.grid is None:
            return x.reshape(shape)
        places = x.new_full((shape[0] * shape[1], *x.shape[1:]), filler)
        return places.index_copy_(0, self.grid, x).view(shape)

    def from_grid(self, x: Tensor) -> Tensor:
        """(windows, width, ...) to (rows, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.grid is None else flat[self.grid]


def _in_one_copy(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Each array as a tensor of integers on the device."""
    whole = to_device(np.concatenate(arrays), device)
    return [*whole.split([len(array) for array in arrays])]
