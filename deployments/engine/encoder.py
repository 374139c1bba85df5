"""Whisper's audio encoder (`whisper.model.AudioEncoder`), with fused projections and prepacked weights."""

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import AudioEncoder, ResidualAttentionBlock

from deployments.engine.layers import LayerNorm, linear, stacked


class Encoder:
    """A copy of `module`'s weights in `dtype`."""

    def __init__(self, module: AudioEncoder, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._conv1 = _parameters(module.conv1, dtype)
        self._conv2 = _parameters(module.conv2, dtype)
        self._positions = module.positional_embedding.detach().float()
        rows = self._positions.shape[0]
        self._layers = [_Layer(block, dtype, rows) for block in module.blocks]
        self._ln = LayerNorm(module.ln_post)

    def __call__(self, mel: Tensor) -> Tensor:
        """Features of shape (windows, audio context, state) for mel of shape (windows, mels, frames)."""
        x = F.gelu(F.conv1d(mel.to(self._dtype), *self._conv1, padding=1))
        x = F.gelu(F.conv1d(x, *self._conv2, stride=2, padding=1))
        x = (x.transpose(1, 2) + self._positions).to(self._dtype)
        for layer in self._layers:
            x = layer(x)
        return self._ln(x)


class _Layer:
    def __init__(
        self, block: ResidualAttentionBlock, dtype: torch.dtype, rows: int
    ) -> None:
        self._heads = block.attn.n_head
        self._attn_ln = LayerNorm(block.attn_ln)
        self._qkv = stacked(
            [block.attn.query, block.attn.key, block.attn.value], dtype, rows
        )
        self._out = linear(block.attn.out.weight, block.attn.out.bias, dtype, rows)
        self._mlp_ln = LayerNorm(block.mlp_ln)
        self._mlp_in = linear(block.mlp[0].weight, block.mlp[0].bias, dtype, rows)
        self._mlp_out = linear(block.mlp[2].weight, block.mlp[2].bias, dtype, rows)

    def __call__(self, x: Tensor) -> Tensor:
        qkv = self._qkv(self._attn_ln(x)).unflatten(-1, (3, self._heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (windows, heads, positions, head state)
        a = F.scaled_dot_product_attention(q, k, v)
        x = self._out(a.transpose(1, 2).flatten(2), residual=x)
        return self._mlp_out(self._mlp_in(self._mlp_ln(x), gelu=True), residual=x)


def _parameters(conv: torch.nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight.detach().to(dtype), conv.bias.detach().to(dtype)
