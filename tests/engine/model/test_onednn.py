"""PyTorch's private oneDNN operators, and what happens where one of them is missing."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from whisper.model import Whisper

from deployments.engine.model import onednn
from deployments.engine.model.kv_cache import cross_attention
from deployments.engine.model.layers import linear
from tests.support.engine import devices
from tests.support.engine.calls import BRIEF, assert_same, exact_engine
from tests.support.engine.devices import CPU
from tests.support.engine.tiny_whisper import recording

NAMES = sorted({name.split(".")[0] for name in onednn.OPERATORS})


@pytest.fixture
def reloaded() -> Iterator[None]:
    """Load the module again after the test, with all operators."""
    yield
    importlib.reload(onednn)


class Without:
    """The operators of oneDNN without one of them."""

    def __init__(self, missing: str) -> None:
        self._missing = missing
        self._all = torch.ops.mkldnn

    def __getattr__(self, name: str) -> Any:
        if name == self._missing:
            raise AttributeError(name)
        return getattr(self._all, name)


def test_the_operators_are_these_four() -> None:
    assert NAMES == [
        "_convolution_pointwise",
        "_linear_pointwise",
        "_reorder_convolution_weight",
        "_reorder_linear_weight",
    ]


@pytest.mark.parametrize("missing", NAMES)
def test_without_any_one_of_them_nothing_is_packed(
    reloaded: None, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.ops, "mkldnn", Without(missing))
        importlib.reload(onednn)
    assert not onednn.AVAILABLE
    assert not onednn.serves(CPU, torch.float32)
    module = nn.Linear(48, 96)
    x = torch.randn(3, 48)
    ours = linear(module.weight, module.bias, torch.float32, 40)
    assert torch.equal(ours(x), module(x))
    attention = cross_attention(
        layers=1,
        slots=1,
        heads=2,
        context=20,
        state=64,
        device=CPU,
        dtype=torch.float32,
    )
    keys, values = torch.randn(2, attention.rows, 64)
    attention.write(0, 0, keys, values)


def test_only_single_precision_on_a_cpu_is_served() -> None:
    assert not onednn.serves(CPU, torch.float16)
    assert not onednn.serves(torch.device("cuda"), torch.float32)


@pytest.mark.skipif(
    not (onednn.AVAILABLE and devices.on_cpu()), reason="nothing is packed here"
)
@pytest.mark.parametrize(
    "options", [{}, {"beam_size": 5}, {"language": None, "word_timestamps": True}]
)
def test_an_engine_without_them_gives_the_same_results(
    tiny_model: Whisper, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    audio = recording(35)
    with exact_engine(tiny_model, 2) as engine:
        packed = engine.transcribe(audio, **BRIEF | options)
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    with exact_engine(tiny_model, 2) as engine:
        assert_same(engine.transcribe(audio, **BRIEF | options), packed)
