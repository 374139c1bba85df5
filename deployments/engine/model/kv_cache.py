"""Keys and values that the decoder attends to, in slots that are allocated once.

`CrossAttention` holds those of the windows' audio, `SelfAttention` those of the tokens so far.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deployments.engine.model import onednn
from deployments.engine.model.sdpa import attend
from deployments.engine.model.slot_index import SlotIndex

# The memory-efficient kernel of a GPU demands that the rows of a mask begin at multiples of this
# many elements.
_MASK_ALIGNMENT = 16


class CrossAttention(Protocol):
    """Keys and values of each window's audio, stored once per window.

    The beams of a window, or the tokens of its prompt, are the query positions of one attention
    call.

    rows: how many keys and values `write` takes: the audio context, perhaps padded
    """

    bytes_per_slot: int
    rows: int

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: shape (rows, state); those after the audio context are ignored"""
        ...

    def attend(self, layer: int, queries: Tensor, slots: SlotIndex) -> Tensor:
        """The output for queries of shape (windows, positions, state), in the same shape."""
        ...

    def scores(
        self, layer: int, queries: Tensor, slots: SlotIndex, heads: Tensor
    ) -> Tensor:
        """Attention of these heads before the softmax, in fp32.

        Shape (windows, heads, positions, audio context). heads: shape (heads,)
        """
        ...


def cross_attention(
    *,
    layers: int,
    slots: int,
    heads: int,
    context: int,
    state: int,
    device: torch.device,
    dtype: torch.dtype,
) -> CrossAttention:
    """The fastest implementation for this device, precision and size of a head."""
    fits = (state // heads) % PackedCrossAttention.BLOCK == 0
    # Without AVX-512, oneDNN's layout depends on the number of queries. For any other number it
    # would lay keys and values out again in each call, which takes a hundred times as long.
    if onednn.serves(device, dtype) and onednn.has_avx512() and fits:
        return PackedCrossAttention(layers, slots, heads, context, state)
    return PlainCrossAttention(layers, slots, heads, context, state, device, dtype)


class PlainCrossAttention:
    """Keys and values as they are, for PyTorch's attention."""

    def __init__(
        self,
        layers: int,
        slots: int,
        heads: int,
        context: int,
        state: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._heads = heads
        shape = (layers, slots, heads, context, state // heads)
        self._keys = _lazy_zeros(shape, device, dtype)
        self._values = _lazy_zeros(shape, device, dtype)
        self.rows = context
        self.bytes_per_slot = 2 * self._keys.nbytes // slots

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        self._keys[layer, slot] = _split_heads(keys, self._heads)
        self._values[layer, slot] = _split_heads(values, self._heads)

    def attend(self, layer: int, queries: Tensor, slots: SlotIndex) -> Tensor:
        q = _split_heads(slots.spread(queries), self._heads)
        a = attend(q, slots.of(self._keys[layer]), slots.of(self._values[layer]))
        return slots.gathered(a.transpose(1, 2).flatten(2))

    def scores(
        self, layer: int, queries: Tensor, slots: SlotIndex, heads: Tensor
    ) -> Tensor:
        # Upstream scales both factors, which keeps the product within the range of fp16.
        keys = slots.of(self._keys[layer]).index_select(1, heads)
        scale = keys.shape[-1] ** -0.25
        q = _split_heads(slots.spread(queries), self._heads).index_select(1, heads)
        return slots.gathered(((q * scale) @ (keys * scale).transpose(-1, -2)).float())


class PackedCrossAttention:
    """Keys and values as prepacked weights: both products are linear layers, one per head.

    For the five queries of a beam search, a batched matrix product reads keys and values at a
    quarter of the memory's speed. oneDNN's operators read them at nearly the full speed.
    """

    BLOCK = 16  # oneDNN's blocked layouts need whole blocks of channels in a group
    # About as many as a beam search has. With AVX-512 this layout serves any number.
    _QUERIES = 8

    def __init__(
        self, layers: int, slots: int, heads: int, context: int, state: int
    ) -> None:
        self._heads = heads
        self._context = context
        self.rows = -(-context // self.BLOCK) * self.BLOCK
        self._scale = (state // heads) ** -0.5
        padding = torch.zeros(heads, self.rows)
        padding[:, context:] = -torch.inf
        self._padding = padding.flatten()
        self._keys: list[list[Tensor | None]] = [[None] * slots for _ in range(layers)]
        self._values: list[list[Tensor | None]] = [
            [None] * slots for _ in range(layers)
        ]
        self.bytes_per_slot = 2 * layers * self.rows * state * 4

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        k = keys.unflatten(1, (self._heads, -1))
        v = values.unflatten(1, (self._heads, -1))
        self._keys[layer][slot] = onednn.pack_grouped(k.transpose(0, 1), self._QUERIES)
        self._values[layer][slot] = onednn.pack_grouped(
            v.permute(1, 2, 0), self._QUERIES
        )

    def attend(self, layer: int, queries: Tensor, slots: SlotIndex) -> Tensor:
        out = torch.empty_like(queries)
        for i, slot in enumerate(slots.numbers):
            weights = self._products(layer, queries[i], slot).softmax(-1)
            out[i] = onednn.grouped_linear(
                weights.flatten(1),
                self._stored(self._values, layer, slot),
                None,
                self._heads,
            )
        return out

    def scores(
        self, layer: int, queries: Tensor, slots: SlotIndex, heads: Tensor
    ) -> Tensor:
        products = [
            self._products(layer, q, slot).index_select(1, heads)
            for q, slot in zip(queries, slots.numbers, strict=True)
        ]
        return torch.stack(products)[..., : self._context].transpose(1, 2)

    def _products(self, layer: int, queries: Tensor, slot: int) -> Tensor:
        """Shape (positions, heads, padded context)."""
        keys = self._stored(self._keys, layer, slot)
        products = onednn.grouped_linear(
            queries * self._scale, keys, self._padding, self._heads
        )
        return products.unflatten(1, (self._heads, self.rows))

    @staticmethod
    def _stored(store: list[list[Tensor | None]], layer: int, slot: int) -> Tensor:
        packed = store[layer][slot]
        assert packed is not None, "the slot has no audio yet"
        return packed


class SelfAttention:
    """Keys and values of the tokens decoded so far, as one tree for each slot.

    A slot holds its prompt once, then a column for each of its beams for every step. A mask shows
    each beam its ancestors only. So reordering the beams moves no keys, and what beams share is
    stored and read once.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        width: int,
        columns: int,
        heads: int,
        state: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._heads = heads
        columns = -(-columns // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
        shape = (layers, slots, heads, columns, state // heads)
        # Zeros, because masked values still take part in the products, where a NaN would spread.
        self._keys = _lazy_zeros(shape, device, dtype)
        self._values = _lazy_zeros(shape, device, dtype)
        # Added to the scores: 0 for what a beam sees, -inf elsewhere; (slots, beams, columns)
        self._visible = torch.zeros(slots, width, columns, device=device, dtype=dtype)
        self._zero = torch.zeros((), device=device, dtype=dtype)
        self.columns = columns
        self.bytes_per_slot = (2 * self._keys.nbytes + self._visible.nbytes) // slots

    def write_prompt(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: shape (tokens, state)."""
        tokens = keys.shape[0]
        self._keys[layer, slot, :, :tokens] = _split_heads(keys, self._heads)
        self._values[layer, slot, :, :tokens] = _split_heads(values, self._heads)

    def begin(self, slot: int, tokens: int) -> None:
        """Every beam of the slot sees the prompt's tokens and nothing else."""
        self._visible[slot].fill_(-torch.inf)
        self._visible[slot, :, :tokens].zero_()

    def clear(self, slot: int) -> None:
        """Erase a window that failed: its NaNs would spread to the next window in the slot."""
        self._keys[:, slot].zero_()
        self._values[:, slot].zero_()

    def unmask(self, slots: Tensor, beams: Tensor, columns: Tensor) -> None:
        """Let each of these beams see its column from now on; all of shape (rows,)."""
        # Assigning a Python number would copy it to a GPU and wait for the copy.
        self._visible.index_put_((slots, beams, columns), self._zero)

    def write(
        self,
        layer: int,
        slots: Tensor,
        columns: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """slots, columns: shape (rows,); keys, values: shape (rows, state)."""
        shape = (-1, self._heads, self._keys.shape[-1])
        self._keys[layer][slots, :, columns] = keys.reshape(shape)
        self._values[layer][slots, :, columns] = values.reshape(shape)

    def mask(self, slots: SlotIndex, width: int, columns: int) -> Tensor:
        """The mask for `attend`, shape (slots in the span, 1, width, columns)."""
        return slots.of(self._visible)[:, None, :width, :columns]

    def attend(
        self, layer: int, queries: Tensor, slots: SlotIndex, mask: Tensor
    ) -> Tensor:
        """The output for queries of shape (windows, beams, state), in the same shape."""
        columns = mask.shape[-1]
        a = attend(
            _split_heads(slots.spread(queries), self._heads),
            slots.of(self._keys[layer][:, :, :columns]),
            slots.of(self._values[layer][:, :, :columns]),
            mask,
        )
        return slots.gathered(a.transpose(1, 2).flatten(2))

    def reorder(self, slots: Tensor, parents: Tensor, columns: int) -> None:
        """Beam b continues beam parents[:, b].

        slots: shape (windows,); parents: (windows, beams)
        """
        windows, width = parents.shape
        seen = self._visible[slots, :width, :columns]
        index = parents[:, :, None].expand(windows, width, columns)
        self._visible[slots, :width, :columns] = seen.gather(1, index)


def _lazy_zeros(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    if device.type == "cpu" and dtype == torch.float32:
        # NumPy's zeros take no memory until a window writes to them.
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(tuple(shape), device=device, dtype=dtype)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., positions, state) to (..., heads, positions, head state)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)
