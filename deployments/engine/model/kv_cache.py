"""What the decoder attends to: the windows' audio, and the tokens decoded so far, in slots allocated once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from deployments.engine.model.layers import has_avx512, packs_weights
from deployments.engine.model.sdpa import attend
from deployments.engine.transfer import to_device


@dataclass(frozen=True)
class Slots:
    """The slots of some windows, in their order.

    index: the same on the model's device, shape (windows,)
    span: where they lie close together, the slice from the first to the last of them: it is read where it
        stands, gaps too, because a copy of the keys and values of every layer would cost more
    places: of the windows in the span, shape (windows,); None if they are it, in order
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
        """What these slots hold, and those in the gaps: rows for those of `spread`."""
        return store[self.index] if self.span is None else store[self.span]

    def spread(self, x: Tensor) -> Tensor:
        """A row for each window to a row for each of the span; those of the gaps are zeros."""
        if self.span is None or self.places is None:
            return x
        rows = self.span.stop - self.span.start
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, self.places, x)

    def gathered(self, x: Tensor) -> Tensor:
        """Back to a row for each window."""
        return x if self.places is None else x[self.places]


# The memory-efficient kernel of a GPU demands that a mask's rows begin at multiples of this many elements.
_MASK_ALIGNMENT = 16
# Slots in the span for each window.
_WIDEST_SPAN = 1.5


class CrossAttention(Protocol):
    """Keys and values of each window's audio, once per window: its beams, or the tokens of its prompt, are the
    query positions of one attention call.
    """

    bytes_per_slot: int

    rows: int

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: shape (rows, state), where rows behind the audio context count for nothing."""
        ...

    def attend(self, layer: int, queries: Tensor, slots: Slots) -> Tensor:
        """Output of shape (windows, positions, state) for queries of that shape, a window for each slot."""
        ...

    def scores(
        self, layer: int, queries: Tensor, slots: Slots, heads: Tensor
    ) -> Tensor:
        """Attention of these heads before the softmax in fp32, shape (windows, heads, positions, audio context)."""
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
    fits = (state // heads) % _PackedCrossAttention.BLOCK == 0
    # Without AVX-512 oneDNN's layout depends on the number of queries: with the others it would lay keys and values
    # out anew in each call, which takes a hundred times as long as the call.
    if packs_weights(device, dtype) and has_avx512() and fits:
        return _PackedCrossAttention(layers, slots, heads, context, state)
    return _PlainCrossAttention(layers, slots, heads, context, state, device, dtype)


class _PlainCrossAttention:
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

    def attend(self, layer: int, queries: Tensor, slots: Slots) -> Tensor:
        q = _split_heads(slots.spread(queries), self._heads)
        a = attend(q, slots.of(self._keys[layer]), slots.of(self._values[layer]))
        return slots.gathered(a.transpose(1, 2).flatten(2))

    def scores(
        self, layer: int, queries: Tensor, slots: Slots, heads: Tensor
    ) -> Tensor:
        # Upstream scales both sides before the product, which keeps it within the range of fp16.
        keys = slots.of(self._keys[layer]).index_select(1, heads)
        scale = keys.shape[-1] ** -0.25
        q = _split_heads(slots.spread(queries), self._heads).index_select(1, heads)
        return slots.gathered(((q * scale) @ (keys * scale).transpose(-1, -2)).float())


class _PackedCrossAttention:
    """The two products as grouped 1x1 convolutions, a group for each head, over weights prepacked by oneDNN.

    With the five queries of a beam search, a batched matrix product reads keys and values at a quarter of
    the memory's speed; these read them at nearly all of it.
    """

    BLOCK = 16  # oneDNN's blocked layouts want whole blocks of channels in a group
    # A beam search's, about; with AVX-512 the layout for it serves any number.
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
        self._keys[layer][slot] = self._pack(k.transpose(0, 1))
        self._values[layer][slot] = self._pack(v.permute(1, 2, 0))

    def _pack(self, weight: Tensor) -> Tensor:
        heads, outputs, inputs = weight.shape
        return torch.ops.mkldnn._reorder_convolution_weight.default(
            weight.reshape(heads * outputs, inputs, 1, 1),
            [0, 0],
            [1, 1],
            [1, 1],
            heads,
            [1, heads * inputs, 1, self._QUERIES],
        )

    def attend(self, layer: int, queries: Tensor, slots: Slots) -> Tensor:
        out = torch.empty_like(queries)
        for i, slot in enumerate(slots.numbers):
            weights = self._products(layer, queries[i], slot).softmax(-1)
            out[i] = self._convolve(weights.flatten(1), self._values[layer][slot], None)
        return out

    def scores(
        self, layer: int, queries: Tensor, slots: Slots, heads: Tensor
    ) -> Tensor:
        products = [
            self._products(layer, q, slot).index_select(1, heads)
            for q, slot in zip(queries, slots.numbers, strict=True)
        ]
        return torch.stack(products)[..., : self._context].transpose(1, 2)

    def _products(self, layer: int, queries: Tensor, slot: int) -> Tensor:
        """Shape (positions, heads, padded context)."""
        products = self._convolve(
            queries * self._scale, self._keys[layer][slot], self._padding
        )
        return products.unflatten(1, (self._heads, self.rows))

    def _convolve(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Shape (positions, outputs) for x of shape (positions, inputs): positions are the pixels of one row."""
        image = x[None, None].permute(0, 3, 1, 2)  # (1, inputs, 1, positions)
        out = torch.ops.mkldnn._convolution_pointwise.default(
            image, weight, bias, [0, 0], [1, 1], [1, 1], self._heads, "none", [], ""
        )
        return out.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


class SelfAttention:
    """Keys and values of the tokens decoded so far, one tree for each slot.

    A slot holds its prompt once, then, for every step, a column for each of its beams. What a beam sees are
    its ancestors, told by a mask: reordering the beams moves no keys, and what beams share is read once.
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
        # Zeros, because what is masked still takes part: a NaN there would spread.
        self._keys = _lazy_zeros(shape, device, dtype)
        self._values = _lazy_zeros(shape, device, dtype)
        # What beam b of a slot sees: 0, and -inf elsewhere. (slots, beams, columns)
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
        """After a window that went wrong, whose NaNs would spread to the next one here."""
        self._keys[:, slot].zero_()
        self._values[:, slot].zero_()

    def see(self, slots: Tensor, beams: Tensor, columns: Tensor) -> None:
        """Each of these beams sees this column from now on; all of shape (rows,)."""
        # The assignment of a Python number would copy it to a GPU, and wait for that.
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

    def mask(self, slots: Slots, width: int, columns: int) -> Tensor:
        """For `attend`: shape (rows of the span, 1, width, columns)."""
        return slots.of(self._visible)[:, None, :width, :columns]

    def attend(self, layer: int, queries: Tensor, slots: Slots, mask: Tensor) -> Tensor:
        """Output of shape (windows, beams, state) for queries of that shape, a window for each slot."""
        columns = mask.shape[-1]
        a = attend(
            _split_heads(slots.spread(queries), self._heads),
            slots.of(self._keys[layer][:, :, :columns]),
            slots.of(self._values[layer][:, :, :columns]),
            mask,
        )
        return slots.gathered(a.transpose(1, 2).flatten(2))

    def reorder(self, slots: Tensor, parents: Tensor, columns: int) -> None:
        """Beam b goes on from beam parents[:, b]; parents: shape (windows, beams)."""
        windows, width = parents.shape
        seen = self._visible[slots, :width, :columns]
        index = parents[:, :, None].expand(windows, width, columns)
        self._visible[slots, :width, :columns] = seen.gather(1, index)


def _lazy_zeros(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    if device.type == "cpu" and dtype == torch.float32:
        # Pages that no window has needed yet take no memory.
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(tuple(shape), device=device, dtype=dtype)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., positions, state) to (..., heads, positions, head state)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)
