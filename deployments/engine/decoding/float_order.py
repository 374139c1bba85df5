"""Maps fp32 numbers to integers of the same order, in which NaN has a place as well."""

import torch
from torch import Tensor


def to_integers(x: Tensor) -> Tensor:
    """The int32 values of fp32 numbers, in the order of the numbers.

    A NaN whose sign bit is clear comes after infinity. Negative zero comes directly before zero.
    """
    return _mirrored(x.view(torch.int32))


def to_floats(integers: Tensor) -> Tensor:
    """The inverse of `to_integers`."""
    return _mirrored(integers).view(torch.float32)


def _mirrored(bits: Tensor) -> Tensor:
    """Flips all bits but the sign where the sign is set. Applied twice, it changes nothing."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
