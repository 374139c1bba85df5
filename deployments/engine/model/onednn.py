"""oneDNN's operators on prepacked weights, by PyTorch's private names, for fp32 on a CPU.

PyTorch makes no promise about these operators. If one of them is missing, `AVAILABLE` is false and
the plain layers and attention do the same work, more slowly. On the machine of benchmarks/results,
prepacked weights are up to six times as fast as `F.linear` at the few rows of a decoding step.
"""

from typing import Any

import torch
from torch import Tensor

# All private operators that the engine uses: every one is checked by name at import.
OPERATORS = (
    "_reorder_linear_weight.default",
    "_linear_pointwise.default",
    "_linear_pointwise.binary",
    "_reorder_convolution_weight.default",
    "_convolution_pointwise.default",
)


def _found(name: str) -> Any:
    """The operator's overload, or None. Naming the overload saves PyTorch a slow resolution."""
    operator, overload = name.split(".")
    packet = getattr(torch.ops.mkldnn, operator, None)
    return getattr(packet, overload, None)


_operators = [_found(name) for name in OPERATORS]
AVAILABLE = torch.backends.mkldnn.is_available() and all(
    operator is not None for operator in _operators
)
_reorder_linear, _linear, _linear_binary, _reorder_convolution, _convolution = (
    _operators
)


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights in this precision on this device can be prepacked."""
    return AVAILABLE and device.type == "cpu" and dtype == torch.float32


def has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """A weight of shape (out, in), laid out for inputs of about `rows` rows."""
    return _reorder_linear(weight.contiguous(), rows)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """`F.linear(x, weight, bias)`, then GELU if it is asked for."""
    return _linear(x, packed, bias, "gelu" if gelu else "none", [], "none")


def linear_add(
    x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor
) -> Tensor:
    """`F.linear(x, weight, bias) + residual`."""
    return _linear_binary(x, residual, packed, bias, "add")


def pack_grouped(weight: Tensor, positions: int) -> Tensor:
    """Matrices of shape (groups, out, in), laid out for about `positions` input vectors."""
    groups, outputs, inputs = weight.shape
    return _reorder_convolution(
        weight.reshape(groups * outputs, inputs, 1, 1),
        [0, 0],
        [1, 1],
        [1, 1],
        groups,
        [1, groups * inputs, 1, positions],
    )


def grouped_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """A linear layer for each group of channels, as a grouped 1x1 convolution.

    x: shape (positions, groups * in); gives shape (positions, groups * out)
    """
    image = x[None, None].permute(0, 3, 1, 2)  # (1, groups * in, 1, positions)
    out = _convolution(
        image, packed, bias, [0, 0], [1, 1], [1, 1], groups, "none", [], ""
    )
    return out.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
