"""Scaled dot-product attention for the decoder, by a kernel that is chosen here, not by PyTorch.

On Hopper GPUs `F.scaled_dot_product_attention` prefers cuDNN, which spends tens of milliseconds on
an execution plan for every new shape. The decoder's attention has a new shape at nearly every step,
so cuDNN must not be used for it. The operators below are those that
`F.scaled_dot_product_attention` calls itself. Calling them directly also spares the host the choice
between kernels.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, without gradients and never by cuDNN.

    q: shape (batch, heads, queries, head state); k, v: shape (batch, heads, keys, head state)
    mask: added to the scores; in q's precision, broadcastable to (batch, heads, queries, keys)

    On GPUs of compute capability 8.0 and higher, FlashAttention computes attention in half
    precision without a mask. The memory-efficient kernel computes everything else on a GPU.
    """
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    if mask is None and q.dtype != torch.float32 and has_flash(q.device):
        return torch.ops.aten._scaled_dot_product_flash_attention.default(
            q, k, v, 0.0, causal
        )[0]
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention.default(
        q, k, v, mask, False, 0.0, causal
    )[0]


@functools.cache
def has_flash(device: torch.device) -> bool:
    capability: tuple[int, int] = torch.get_device_module(device).get_device_capability(
        device
    )
    return capability >= (8, 0)
