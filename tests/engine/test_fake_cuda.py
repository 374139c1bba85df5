"""Shapes, devices and waits of a decoding step on CUDA without a GPU, by tensors without values.

This needs a PyTorch that is built for CUDA; builds for the CPU alone cannot move a tensor to such a
device.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from whisper.decoding import DecodingOptions
from whisper.model import Whisper

from benchmarks.gpu.models import DIMENSIONS
from deployments.engine import model_runner
from deployments.engine.decoding import batch
from deployments.engine.model import sdpa, transfer
from deployments.engine.upstream.decoding import plan_for

pytestmark = [
    pytest.mark.skipif(
        torch.version.cuda is None, reason="PyTorch is not built for CUDA"
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests run on it"),
]

PLANS: list[dict[str, Any]] = [
    {"beam_size": 5},
    {},
    {"temperature": 0.7, "best_of": 3, "without_timestamps": True},
    {"beam_size": 2, "suppress_tokens": [1, 2], "prompt": [3] * 40},
]
aten = torch.ops.aten
NEED_VALUES = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
}


class Waits(TorchDispatchMode):
    """Notes the operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        devices = {x.device.type for x in (*given, *made)}
        asks_not_to = kwargs.get("non_blocking") or any(x is True for x in args[2:])
        if func in NEED_VALUES or (len(devices) > 1 and not asks_not_to):
            self.names.append(str(func))
        return result


def new_tensor(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(sdpa, "has_flash", lambda device: True)
    # `send` copies values, which do not exist here, and pins memory, which needs a GPU.
    for module in (transfer, batch):
        monkeypatch.setattr(module, "send", new_tensor)
    # Values cannot be read.
    monkeypatch.setattr(Tensor, "to_sparse", lambda alignment_heads: alignment_heads)
    monkeypatch.setattr(model_runner, "alignment_heads", lambda model, device: {})
    monkeypatch.setattr(
        batch, "wait_for", lambda flags: [[False] * flags.shape[1]] * flags.shape[0]
    )
    with FakeTensorMode(), torch.inference_mode():
        yield torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("base", torch.float32), *((name, torch.float16) for name in DIMENSIONS)],
    ids=str,
)
def test_a_step_keeps_to_its_device_and_waits_for_nothing(
    cuda: torch.device, name: str, dtype: torch.dtype
) -> None:
    # The encoder takes no part in a step.
    dims = replace(DIMENSIONS[name], n_audio_layer=1)
    with cuda:
        model = Whisper(dims)
    runner = model_runner.ModelRunner.of(model, cuda, dtype, slots=8)
    for windows in (1, 8):
        slots = list(range(windows))
        asked = [PLANS[n % len(PLANS)] for n in slots]
        plans = [
            plan_for(runner.facts, DecodingOptions(language="en", **options))
            for options in asked
        ]
        features = torch.empty(dims.n_audio_ctx, dims.n_audio_state, device=cuda)
        with Waits() as waits:
            for slot in slots:
                runner.decoder.write_cross_kv(slot, features.to(dtype))
            runner.batch.join(slots, plans, slots)
            for some in (slots, slots, slots[: max(1, windows - 1)], slots):
                runner.batch.step(some)
        assert waits.names == []
