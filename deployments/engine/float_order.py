"""fp32 numbers as integers in the same order, so that comparing integers decides between them."""

import torch
from torch import Tensor


def to_integers(x: Tensor) -> Tensor:
    """In int32: negative numbers lie before positive ones, and a NaN without a sign behind infinity.

    Numbers that are equal give equal integers, but for the negative zero, which comes before zero.
    """
    return _mirrored(x.view(torch.int32))


def to_floats(integers: Tensor) -> Tensor:
    """The numbers that `to_integers` was given."""
    return _mirrored(integers).view(torch.float32)


def _mirrored(bits: Tensor) -> Tensor:
    """Reverses the order of what has its sign set, and does the same back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
