"""Whisper's audio encoder (`whisper.model.AudioEncoder`) with fused projections."""

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import AudioEncoder, ResidualAttentionBlock

from deployments.engine.model.layers import LayerNorm, linear, on_device, stacked


class Encoder:
    """A copy of `module`'s weights in `dtype` on `device`."""

    def __init__(
        self, module: AudioEncoder, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        self._positions = module.positional_embedding.detach().float().to(device)
        rows = self._positions.shape[0]
        self._conv1 = _Convolution(on_device(module.conv1, device), 1, dtype, rows)
        self._conv2 = _Convolution(on_device(module.conv2, device), 2, dtype, rows)
        # One at a time, so that no more than one layer is in memory in both precisions.
        self._layers = [
            _Layer(on_device(block, device), dtype, rows) for block in module.blocks
        ]
        self._ln = LayerNorm(on_device(module.ln_post, device))

    def __call__(self, mel: Tensor) -> Tensor:
        """Features of shape (windows, audio context, state), in the encoder's precision.

        mel: log-mel spectrograms, shape (windows, mels, frames)
        """
        x = self._conv2(self._conv1(mel.to(self._dtype).transpose(1, 2)))
        x = (x + self._positions).to(self._dtype)
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


class _Convolution:
    """A convolution of width 3 and GELU, as a linear layer over overlapping views."""

    _WIDTH = 3

    def __init__(
        self, conv: torch.nn.Conv1d, stride: int, dtype: torch.dtype, rows: int
    ) -> None:
        weight = conv.weight.detach().transpose(1, 2)  # (out, width, in)
        self._linear = linear(weight.flatten(1), conv.bias, dtype, rows)
        self._stride = stride

    def __call__(self, x: Tensor) -> Tensor:
        """(windows, frames / stride, out) for x of shape (windows, frames, in)."""
        windows, frames, channels = x.shape
        padded = F.pad(x, (0, 0, 1, 1)).contiguous()
        patches = padded.as_strided(
            (windows, frames // self._stride, self._WIDTH * channels),
            (padded.stride(0), self._stride * channels, 1),
        )
        return self._linear(patches, gelu=True)
