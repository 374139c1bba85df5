"""Which slots take part in a call of attention, and how to read them without a copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deployments.engine.model.transfer import to_device

# Slots in the span, for each window, up to which the span is read as a whole.
_WIDEST_SPAN = 1.5


@dataclass(frozen=True)
class SlotIndex:
    """The slots of some windows, in the windows' order.

    numbers: a slot for each window
    index: the same on the model's device, shape (windows,)
    span: the slice from the first slot to the last; None if the slots lie far apart. The span is
        read where it is, with the slots in its gaps, because a copy of the keys and values of every
        layer would cost more.
    places: the windows' places in the span, shape (windows,); None if the windows are the span,
        in order
    """

    numbers: list[int]
    index: Tensor
    span: slice | None
    places: Tensor | None

    @classmethod
    def on(cls, device: torch.device, numbers: Sequence[int]) -> Self:
        index = to_device(numbers, device)
        first, end = min(numbers), max(numbers) + 1
        if end - first > _WIDEST_SPAN * len(numbers):
            return cls([*numbers], index, None, None)
        in_order = [*numbers] == [*range(first, end)]
        places = None if in_order else index - first
        return cls([*numbers], index, slice(first, end), places)

    def of(self, store: Tensor) -> Tensor:
        """What the store holds for the slots of the span, or for these slots if there is no span.

        store: shape (slots, ...)
        """
        return store[self.index] if self.span is None else store[self.span]

    def spread(self, x: Tensor) -> Tensor:
        """Rows for `of` from a row for each window; the rows of slots in gaps are zeros."""
        if self.span is None or self.places is None:
            return x
        rows = self.span.stop - self.span.start
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, self.places, x)

    def gathered(self, x: Tensor) -> Tensor:
        """The inverse of `spread`: a row for each window."""
        return x if self.places is None else x[self.places]
