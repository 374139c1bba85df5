"""Whisper's text decoder (`whisper.model.TextDecoder`), for many windows and their beams at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import ModelDimensions, ResidualAttentionBlock, TextDecoder

from deployments.engine.decoding.row_layout import Group
from deployments.engine.model.kv_cache import SelfAttention, Slots, cross_attention
from deployments.engine.model.layers import LayerNorm, linear, on_device, stacked
from deployments.engine.model.sdpa import attend
from deployments.engine.transfer import to_device

_STEP_ROWS = (
    40  # eight windows of five beams; prepacked layouts for it serve any number
)


@dataclass(frozen=True)
class Rows:
    """The rows of one decoding step.

    position: of each row's token in the text context, shape (rows,)
    column: of each row's slot, for the token's keys and values, shape (rows,)
    columns: how many columns of the slots are in use, with this step's
    """

    group: Group
    position: Tensor
    column: Tensor
    columns: int


class Decoder:
    """A copy of `module`'s weights in `dtype` on `device`, and the slots of up to `slots` windows.

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
        """About what a slot will take."""
        tokens = dims.n_audio_ctx + _columns(dims, width)
        return 2 * dims.n_text_layer * tokens * dims.n_text_state * dtype.itemsize

    @property
    def bytes_per_slot(self) -> int:
        return self._cross.bytes_per_slot + self._self.bytes_per_slot

    @property
    def columns(self) -> int:
        """Tokens that a slot holds: those of the prompt and, for every step, one of each beam."""
        return self._self.columns

    def listen(self, slot: int, features: Tensor) -> None:
        """What the slot's window attends to; features: shape (audio context, state)."""
        features = F.pad(features, (0, 0, 0, self._cross.rows - len(features)))
        for index, layer in enumerate(self._layers):
            keys, values = layer.cross_keys_values(features).chunk(2, -1)
            self._cross.write(index, slot, keys, values)

    def clear(self, slot: int) -> None:
        """Forget what a window that went wrong has left there."""
        self._self.clear(slot)

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read each window's prompt once for all of its beams.

        Gives the hidden state of every token, shape (windows, longest prompt, state); what stands behind
        a shorter prompt has no meaning.
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
        """The hidden states of these tokens, and what the heads `scored` attend to before the softmax, shape
        (windows, heads, longest text, audio context). Changes no slot.

        scored: heads of each layer, by its number, on the model's device
        """
        return self._read(slots, texts, keep=False, scored=scored)

    def step(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Logits in fp32 of shape (rows, vocabulary) after one more token for each row, shape (rows,)."""
        x = self._embed(tokens, rows.position)
        group = rows.group
        self._self.see(group.row_slot, group.row_beam, rows.column)
        mask = self._self.mask(group.slots, group.width, rows.columns)
        for index, layer in enumerate(self._layers):
            q, k, v = layer.qkv(layer.attn_ln(x)).chunk(3, -1)
            self._self.write(index, group.row_slot, rows.column, k, v)
            a = self._self.attend(index, group.to_grid(q), group.slots, mask)
            x = layer.attn_out(group.from_grid(a), residual=x)
            q = layer.cross_query(layer.cross_ln(x))
            a = self._cross.attend(index, group.to_grid(q), group.slots)
            x = layer.cross_out(group.from_grid(a), residual=x)
            x = layer.mlp(x)
        return self.logits(x)

    def reorder(self, slots: Tensor, parents: Tensor, columns: int) -> None:
        """Beam b of each window goes on from its beam parents[:, b]; parents: shape (windows, beams)."""
        self._self.reorder(slots, parents, columns)

    def logits(self, hidden: Tensor) -> Tensor:
        """In fp32, of shape (..., vocabulary)."""
        return self._vocabulary(self._ln(hidden)).float()

    def hear_one(self, features: Tensor, token: int) -> Tensor:
        """Logits of shape (windows, vocabulary) after one token, for audio that takes no slot.

        features: shape (windows, audio context, state). For a single query it is cheaper to bring the
        query to the features than to make keys and values of all of them; the product is the same.
        """
        windows = features.shape[0]
        tokens = torch.full((windows,), token, device=features.device)
        x = self._embed(tokens, torch.zeros_like(tokens))
        for layer in self._layers:
            # A token that sees but itself attends to its own value.
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
        heard = Slots.on(device, slots)
        x = self._embed(tokens, torch.arange(longest, device=device))
        scores: list[Tensor] = []
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.attn_ln(x))
            if keep:
                _, k, v = qkv.chunk(3, -1)
                for i, (slot, text) in enumerate(zip(slots, texts, strict=True)):
                    length = len(text)
                    self._self.write_prompt(index, slot, k[i, :length], v[i, :length])
            q, k, v = qkv.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
            a = attend(q, k, v, causal=True)
            x = layer.attn_out(a.transpose(1, 2).flatten(2), residual=x)
            q = layer.cross_query(layer.cross_ln(x))
            if index in scored:
                scores.append(self._cross.scores(index, q, heard, scored[index]))
            x = layer.cross_out(self._cross.attend(index, q, heard), residual=x)
            x = layer.mlp(x)
        return x, torch.cat(scores, 1) if scores else x.new_empty(0)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return (self._embedding[tokens] + self._positions[positions]).to(self._dtype)


def _columns(dims: ModelDimensions, width: int) -> int:
    """The longest prompt leaves the fewest steps; `n_text_ctx` bounds both together."""
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
        """query: shape (windows, state); features: shape (windows, audio context, state)."""
        q = query.unflatten(-1, (self._heads, -1))
        key = self._cross_key.unflatten(0, (self._heads, -1))
        q = torch.einsum("whd,hdc->whc", q, key) * q.shape[-1] ** -0.5
        weights = (q @ features.transpose(1, 2)).float().softmax(-1).to(q.dtype)
        value = self._cross_value.unflatten(0, (self._heads, -1))
        heard = torch.einsum("whc,hdc->whd", weights @ features, value)
        return heard.flatten(1) + self._cross_value_bias
