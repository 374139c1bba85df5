"""Whisper's layers over weights that are copied once into the layout and precision of their device.

On a CPU, oneDNN's prepacked weights are up to six times as fast as a plain `F.linear` at the few rows of a
decoding step (MKL's sgemm does not reach this processor's speed there). At the many rows of an encoding they are
faster with AVX-512 alone. Elsewhere, where oneDNN's operators are missing, and on a GPU, the plain ones do the same.
"""

import copy
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)

# An encoding has 1,500 rows; a step, or a prompt, has fewer than these.
_MANY_ROWS = 512


def on_device(module: _Module, device: torch.device) -> _Module:
    """The module itself if it is there, else a copy.

    Copied first, because moving a module moves it in place, and its owner's stays where it is.
    """
    if next(module.parameters()).device == device:
        return module
    return copy.deepcopy(module).to(device)


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators on prepacked weights can be used."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Linear(Protocol):
    """`x @ weight.T + bias`, then GELU or an addition, for x of shape (..., in)."""

    def __call__(
        self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor: ...


def linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int
) -> Linear:
    """A linear layer in this precision, its weights laid out for inputs of about `rows` rows."""
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    if packs_weights(weight.device, dtype) and (rows < _MANY_ROWS or has_avx512()):
        return _PackedLinear(weight, bias, rows)
    return _PlainLinear(weight, bias)


def stacked(modules: Sequence[nn.Linear], dtype: torch.dtype, rows: int) -> Linear:
    """Several linear layers of the same input as one; their outputs follow each other."""
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
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            weight.contiguous(), rows
        )
        self._bias = bias

    def __call__(
        self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        if residual is not None:
            # The overload by name: torch would first try the other one, and format its refusal for long.
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
        activation = "gelu" if gelu else "none"
        return torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, activation, [], "none"
        )


class LayerNorm:
    """Computed in fp32 whatever the precision of its input."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self._shape = module.normalized_shape
        self._weight = module.weight.detach().float()
        self._bias = module.bias.detach().float()
        self._eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), self._shape, self._weight, self._bias, self._eps)
        return y.to(x.dtype)
