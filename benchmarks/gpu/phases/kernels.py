"""Whisper's attention by each of PyTorch's kernels: first call, first with a new shape, later."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.models import DIMENSIONS
from benchmarks.gpu.run import Run
from deployments.engine.model.sdpa import attend

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Place:
    """One of the model's calls of attention.

    keys: number of keys, which grows with every step in self-attention
    """

    name: str
    model: str
    windows: int
    queries: int
    keys: int
    masked: bool = False
    causal: bool = False

    def inputs(self, run: Run, more: int) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Queries, keys, values and mask, with `more` keys than `keys` where the number varies."""
        heads = DIMENSIONS[self.model].n_text_head
        keys = self.keys + (more if self.masked else 0)
        queries = self.queries + (more if self.causal else 0)
        keys = queries if self.causal else keys
        shape = (self.windows, heads, queries, 64)
        q = torch.randn(shape, device=run.device, dtype=run.dtype)
        k, v = torch.randn(2, self.windows, heads, keys, 64, device=run.device).to(
            run.dtype
        )
        if not self.masked:
            return q, k, v, None
        # The mask's rows are as long as those of the engine's store.
        rows = torch.zeros(self.windows, 10, 2464, device=run.device, dtype=run.dtype)
        return q, k, v, rows[:, None, :queries, :keys]


def places(run: Run) -> Iterator[Place]:
    lanes = [1] if run.tiny else [1, 8, 32]
    for model in ("turbo",) if run.tiny else ("base", "turbo"):
        for windows in lanes:
            for width in (1, 5):
                yield Place("self", model, windows, width, 600, masked=True)
                yield Place("cross", model, windows, width, 1500)
        yield Place("prompt", model, min(8, lanes[-1]), 200, 200, causal=True)
        for windows in lanes[:2]:
            queries = 100 if run.tiny else 1500
            yield Place("encoder", model, windows, queries, queries)


def measure(run: Run) -> None:
    run.attempt("layer norm", partial(_layer_norm, run))
    for place in places(run):
        ways: dict[str, Callable[..., Tensor]] = {
            "default": F.scaled_dot_product_attention
        }
        if run.on_gpu:
            ways |= {name: _by(kernel) for name, kernel in KERNELS.items()}
        for way, attention in (*ways.items(), ("engine", _engines)):
            work = partial(_attention, run, place, way, attention)
            run.attempt(f"{place.name} by {way}", work)


def _layer_norm(run: Run) -> None:
    """Layer norm in half precision, with official code's casts to fp32 and without.

    The kernel itself computes in fp32.
    """
    state = 64 if run.tiny else 1280
    x = torch.randn(160, state, device=run.device).to(run.dtype)
    weight, bias = torch.randn(2, state, device=run.device).to(run.dtype).float()

    def with_casts() -> Tensor:
        return F.layer_norm(x.float(), (state,), weight, bias).to(x.dtype)

    halves = weight.to(x.dtype), bias.to(x.dtype)

    def directly() -> Tensor:
        return F.layer_norm(x, (state,), *halves)

    run.report(
        "layer norm",
        equal=torch.equal(with_casts(), directly()),
        with_casts_us=1e6 * run.seconds_each(with_casts),
        directly_us=1e6 * run.seconds_each(directly),
    )


def _by(kernel: SDPBackend) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attention


def _engines(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> Tensor:
    return attend(q, k, v, attn_mask, causal=is_causal)


def _attention(
    run: Run, place: Place, way: str, attention: Callable[..., Tensor]
) -> None:
    about = {
        "place": place.name,
        "model": place.model,
        "windows": place.windows,
        "queries": place.queries,
        "kernel": way,
    }
    if way == "default" and run.on_gpu:
        q, k, v, mask = place.inputs(run, 0)
        choice = torch._fused_sdp_choice(q, k, v, mask, 0.0, place.causal)
        about["kernel"] = f"default, {SDPBackend(choice).name.lower()}"

    def call(more: int) -> Callable[[], Tensor]:
        q, k, v, mask = place.inputs(run, more)
        return partial(attention, q, k, v, attn_mask=mask, is_causal=place.causal)

    first, second = call(0), call(5)
    try:
        new = run.seconds(first)
        another = run.seconds(second)
        again = run.seconds_each(first)
    except RuntimeError as error:
        # Not every kernel takes every call.
        run.report("attention", **about, error=str(error).splitlines()[0][:120])
        return
    run.report(
        "attention",
        **about,
        first_ms=1e3 * new,
        next_shape_ms=1e3 * another,
        ms=1e3 * again,
    )
