"""Whisper's text decoder (`whisper.model.TextDecoder`) for many windows and beams at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import ModelDimensions, ResidualAttentionBlock, TextDecoder

from deployments.engine.model.kv_cache import SelfAttention, cross_attention
from deployments.engine.model.layers import LayerNorm, linear, on_device, stacked
from deployments.engine.model.sdpa import attend
from deployments.engine.model.slot_index import SlotIndex
from deployments.engine.model.transfer import to_device

# Eight windows of five beams. Prepacked layouts for this number serve any other.
_STEP_ROWS = 40


class Layout(Protocol):
    """Which slot and beam each row of a step belongs to; see `decoding.row_layout.RowLayout`.

    width: the most beams of a window
    row_slot, row_beam: shape (rows,)
    """

    slots: SlotIndex
    width: int
    row_slot: Tensor
    row_beam: Tensor

    def to_grid(self, x: Tensor) -> Tensor:
        """(rows, ...) to (windows, width, ...)."""
        ...

    def from_grid(self, x: Tensor) -> Tensor:
        """(windows, width, ...) to (rows, ...)."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of one decoding step.

    position: of each row's token in the text context, shape (rows,)
    column: where in its slot the token's keys and values are written, shape (rows,)
    columns: how many columns of the slots are in use, including this step's
    """

    layout: Layout
    position: Tensor
    column: Tensor
    columns: int


class Decoder:
    """A copy of `module`'s weights in `dtype` on `device`, and slots for `slots` windows.

    width: the most beams, or samples, of a window
    """

    def __init__(
        self,
        module: TextDecoder,
        dims: ModelDimensions,
        device: torch.device,
        dtype: torch.dtype,
        *,
        slots: int,
        width: int,
    ) -> None:
        self._dtype = dtype
        self._heads = dims.n_text_head
        self._embedding = module.token_embedding.weight.detach().to(device)
        self._positions = module.positional_embedding.detach().to(device)
        self._layers = [
            _Layer(on_device(block, device), dtype, dims.n_audio_ctx)
            for block in module.blocks
        ]
        self._ln = LayerNorm(on_device(module.ln, device))
        self._vocabulary = linear(self._embedding, None, dtype, _STEP_ROWS)
        self._cross = cross_attention(
            layers=dims.n_text_layer,
            slots=slots,
            heads=dims.n_text_head,
            context=dims.n_audio_ctx,
            state=dims.n_text_state,
            device=device,
            dtype=dtype,
        )
        self._self = SelfAttention(
            layers=dims.n_text_layer,
            slots=slots,
            width=width,
            columns=_columns(dims, width),
            heads=dims.n_text_head,
            state=dims.n_text_state,
            device=device,
            dtype=dtype,
        )

    @staticmethod
    def slot_bytes(dims: ModelDimensions, dtype: torch.dtype, width: int) -> int:
        """About how much memory a slot takes."""
        tokens = dims.n_audio_ctx + _columns(dims, width)
        return 2 * dims.n_text_layer * tokens * dims.n_text_state * dtype.itemsize

    @property
    def bytes_per_slot(self) -> int:
        return self._cross.bytes_per_slot + self._self.bytes_per_slot

    @property
    def columns(self) -> int:
        """How many tokens a slot holds: those of the prompt, and one per beam and step."""
        return self._self.columns

    def write_cross_kv(self, slot: int, features: Tensor) -> None:
        """Compute the keys and values of a window's audio, and write them to its slot.

        features: shape (audio context, state)
        """
        features = F.pad(features, (0, 0, 0, self._cross.rows - len(features)))
        for index, layer in enumerate(self._layers):
            keys, values = layer.cross_keys_values(features).chunk(2, -1)
            self._cross.write(index, slot, keys, values)

    def clear(self, slot: int) -> None:
        """Erase what a window that failed has left in the slot."""
        self._self.clear(slot)

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read each window's prompt once for all of its beams.

        Gives the hidden state of every token, shape (windows, longest prompt, state). The states
        after the end of a shorter prompt have no meaning.
        """
        hidden, _ = self._read(slots, prompts, keep=True, scored={})
        for slot, prompt in zip(slots, prompts, strict=True):
            self._self.begin(slot, len(prompt))
        return hidden

    def read(
        self,
        slots: Sequence[int],
        texts: Sequence[Sequence[int]],
        scored: Mapping[int, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The hidden states of these tokens, and what some heads of cross-attention attend to.

        The states have shape (windows, longest text, state), the attention before the softmax has
        shape (windows, heads, longest text, audio context). No slot is changed.

        scored: those heads, by the number of their layer, on the model's device
        """
        return self._read(slots, texts, keep=False, scored=scored)

    def step(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Read one more token of each row. Gives logits in fp32, shape (rows, vocabulary).

        tokens: shape (rows,)
        """
        x = self._embed(tokens, rows.position)
        layout = rows.layout
        self._self.unmask(layout.row_slot, layout.row_beam, rows.column)
        mask = self._self.mask(layout.slots, layout.width, rows.columns)
        for index, layer in enumerate(self._layers):
            q, k, v = layer.qkv(layer.attn_ln(x)).chunk(3, -1)
            self._self.write(index, layout.row_slot, rows.column, k, v)
            a = self._self.attend(index, layout.to_grid(q), layout.slots, mask)
            x = layer.attn_out(layout.from_grid(a), residual=x)
            q = layer.cross_query(layer.cross_ln(x))
            a = self._cross.attend(index, layout.to_grid(q), layout.slots)
            x = layer.cross_out(layout.from_grid(a), residual=x)
            x = layer.mlp(x)
        return self.logits(x)

    def reorder(self, slots: Tensor, parents: Tensor, columns: int) -> None:
        """Beam b of each window continues its beam parents[:, b].

        parents: shape (windows, beams).
        """
        self._self.reorder(slots, parents, columns)

    def logits(self, hidden: Tensor) -> Tensor:
        """In fp32, of shape (..., vocabulary)."""
        return self._vocabulary(self._ln(hidden)).float()

    def first_token_logits(self, features: Tensor, token: int) -> Tensor:
        """Logits in fp32 after a first token, for windows that have no slot.

        features: shape (windows, audio context, state); gives shape (windows, vocabulary)

        Since there is one query only, the weights of keys and values are applied to the query and
        to the output, instead of to all of the audio. The product is the same, and much cheaper.
        """
        windows = features.shape[0]
        tokens = torch.full((windows,), token, device=features.device)
        x = self._embed(tokens, torch.zeros_like(tokens))
        for layer in self._layers:
            # A token that sees only itself attends to its own value.
            _, _, v = layer.qkv(layer.attn_ln(x)).chunk(3, -1)
            x = layer.attn_out(v, residual=x)
            q = layer.cross_query(layer.cross_ln(x))
            x = layer.cross_out(layer.absorbed_cross_attention(q, features), residual=x)
            x = layer.mlp(x)
        return self.logits(x)

    def _read(
        self,
        slots: Sequence[int],
        texts: Sequence[Sequence[int]],
        keep: bool,
        scored: Mapping[int, Tensor],
    ) -> tuple[Tensor, Tensor]:
        longest = max(map(len, texts))
        padded = [[*text, *[0] * (longest - len(text))] for text in texts]
        device = self._embedding.device
        tokens = to_device(padded, device)
        index = SlotIndex.on(device, slots)
        x = self._embed(tokens, torch.arange(longest, device=device))
        scores: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.attn_ln(x))
            if keep:
                _, k, v = qkv.chunk(3, -1)
                for i, (slot, text) in enumerate(zip(slots, texts, strict=True)):
                    length = len(text)
                    self._self.write_prompt(number, slot, k[i, :length], v[i, :length])
            q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
            a = attend(q, k, v, causal=True)
            x = layer.attn_out(a.transpose(1, 2).flatten(2), residual=x)
            q = layer.cross_query(layer.cross_ln(x))
            if number in scored:
                scores.append(self._cross.scores(number, q, index, scored[number]))
            x = layer.cross_out(self._cross.attend(number, q, index), residual=x)
            x = layer.mlp(x)
        return x, torch.cat(scores, 1) if scores else x.new_empty(0)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return (self._embedding[tokens] + self._positions[positions]).to(self._dtype)


def _columns(dims: ModelDimensions, width: int) -> int:
    """The most columns that a window needs: those of the longest prompt and of all its steps.

    `n_text_ctx` bounds prompt and steps together, and half of it bounds the steps.
    """
    steps = dims.n_text_ctx // 2
    return dims.n_text_ctx - steps + steps * width


class _Layer:
    def __init__(
        self, block: ResidualAttentionBlock, dtype: torch.dtype, audio_rows: int
    ) -> None:
        attn, cross = block.attn, block.cross_attn
        assert cross is not None
        self._heads = cross.n_head
        self.attn_ln = LayerNorm(block.attn_ln)
        self.qkv = stacked([attn.query, attn.key, attn.value], dtype, _STEP_ROWS)
        self.attn_out = linear(attn.out.weight, attn.out.bias, dtype, _STEP_ROWS)
        self.cross_ln = LayerNorm(block.cross_attn_ln)
        self.cross_query = linear(
            cross.query.weight, cross.query.bias, dtype, _STEP_ROWS
        )
        self.cross_keys_values = stacked([cross.key, cross.value], dtype, audio_rows)
        self.cross_out = linear(cross.out.weight, cross.out.bias, dtype, _STEP_ROWS)
        self._cross_key = cross.key.weight.detach().to(dtype)
        self._cross_value = cross.value.weight.detach().to(dtype)
        self._cross_value_bias = cross.value.bias.detach().to(dtype)
        self._mlp_ln = LayerNorm(block.mlp_ln)
        self._mlp_in = linear(block.mlp[0].weight, block.mlp[0].bias, dtype, _STEP_ROWS)
        self._mlp_out = linear(
            block.mlp[2].weight, block.mlp[2].bias, dtype, _STEP_ROWS
        )

    def mlp(self, x: Tensor) -> Tensor:
        return self._mlp_out(self._mlp_in(self._mlp_ln(x), gelu=True), residual=x)

    def absorbed_cross_attention(self, query: Tensor, features: Tensor) -> Tensor:
        """Cross-attention of one query of each window, without keys and values.

        query: shape (windows, state); features: shape (windows, audio context, state)
        """
        q = query.unflatten(-1, (self._heads, -1))
        key = self._cross_key.unflatten(0, (self._heads, -1))
        q = torch.einsum("whd,hdc->whc", q, key) * q.shape[-1] ** -0.5
        weights = (q @ features.transpose(1, 2)).float().softmax(-1).to(q.dtype)
        value = self._cross_value.unflatten(0, (self._heads, -1))
        attended = torch.einsum("whc,hdc->whd", weights @ features, value)
        return attended.flatten(1) + self._cross_value_bias
