"""Whisper's layers over weights that are copied once into the layout and precision of their device.

On a CPU, weights are prepacked by oneDNN if that is faster: always for the few rows of a decoding
step, and only with AVX-512 for the many rows of an encoding. Everywhere else `F.linear` is used.
"""

import copy
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.engine.model import onednn

_Module = TypeVar("_Module", bound=nn.Module)

# An encoding has 1,500 rows. A step and a prompt have fewer rows than this.
_MANY_ROWS = 512


def on_device(module: _Module, device: torch.device) -> _Module:
    """The module itself if it is on the device, else a copy there.

    `module.to(device)` alone would move the owner's module.
    """
    if next(module.parameters()).device == device:
        return module
    return copy.deepcopy(module).to(device)


class Linear(Protocol):
    """`x @ weight.T + bias`, then GELU or the addition of `residual`.

    x: shape (..., in); residual: shape (..., out), not changed
    """

    def __call__(
        self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor: ...


def linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int
) -> Linear:
    """A linear layer in this precision. rows: about how many rows its inputs will have"""
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    few_rows = rows < _MANY_ROWS
    if onednn.serves(weight.device, dtype) and (few_rows or onednn.has_avx512()):
        return _PackedLinear(weight, bias, rows)
    return _PlainLinear(weight, bias)


def stacked(modules: Sequence[nn.Linear], dtype: torch.dtype, rows: int) -> Linear:
    """Several linear layers of the same input as one; their outputs are concatenated."""
    biases: list[Tensor] = [
        m.weight.new_zeros(m.out_features) if m.bias is None else m.bias
        for m in modules
    ]
    weight = torch.cat([m.weight.detach() for m in modules])
    return linear(weight, torch.cat(biases), dtype, rows)


class _PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(
        self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        if gelu:
            y = F.gelu(y)
        return y if residual is None else y.add_(residual)


class _PackedLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._weight = onednn.pack_linear(weight, rows)
        self._bias = bias

    def __call__(
        self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        if residual is not None:
            return onednn.linear_add(x, self._weight, self._bias, residual)
        return onednn.linear(x, self._weight, self._bias, gelu=gelu)


class LayerNorm:
    """Layer norm in fp32, whatever the precision of its input; the output has the input's."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self._shape = module.normalized_shape
        self._weight = module.weight.detach().float()
        self._bias = module.bias.detach().float()
        self._eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self._shape, self._weight, self._bias, self._eps)
        return y.to(x.dtype)
