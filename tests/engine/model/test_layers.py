import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import LayerNorm as OfficialLayerNorm

from deployments.engine.model import onednn
from deployments.engine.model.layers import (
    LayerNorm,
    linear,
    on_device,
    stacked,
)
from tests.support.engine import devices
from tests.support.engine.devices import CPU

TOLERANCE = 1e-5


def random(*shape: int) -> Tensor:
    return torch.randn(shape).to(devices.chosen())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["packed", "plain"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(onednn, "AVAILABLE", False)
    elif not onednn.serves(devices.chosen(), torch.float32):
        pytest.skip("nothing is packed but on a CPU, by oneDNN's operators")
    return str(request.param)


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("laid_out_for", [1, 40, 1500])
@pytest.mark.parametrize("shape", [(1,), (3,), (40,), (2, 5), (2, 100), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_linear_layer_is_torchs_whatever_its_layout(
    monkeypatch: pytest.MonkeyPatch,
    packing: str,
    bias: bool,
    shape: tuple[int, ...],
    laid_out_for: int,
    avx512: bool,
) -> None:
    monkeypatch.setattr(onednn, "has_avx512", lambda: avx512)
    module = nn.Linear(48, 96, bias=bias).to(devices.chosen())
    ours = linear(module.weight, module.bias, torch.float32, laid_out_for)
    x, residual = random(*shape, 48), random(*shape, 96)
    expected = module(x)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        ours(x, gelu=True), F.gelu(expected), rtol=0, atol=TOLERANCE
    )
    added = ours(x, residual=residual)
    torch.testing.assert_close(added, residual + expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_linear_layer_reads_inputs_and_residuals_that_are_not_contiguous(
    packing: str,
) -> None:
    module = nn.Linear(48, 48).to(devices.chosen())
    ours = linear(module.weight, module.bias, torch.float32, 40)
    x = random(7, 3, 48).transpose(0, 1)[:, ::2]
    residual = random(3, 4, 96)[..., ::2]
    kept = residual.clone()
    expected = residual + module(x)
    torch.testing.assert_close(
        ours(x, residual=residual), expected, rtol=0, atol=TOLERANCE
    )
    assert torch.equal(residual, kept)


@torch.no_grad()
def test_a_linear_layer_in_half_precision_is_torchs() -> None:
    module = nn.Linear(48, 96).to(devices.chosen())
    ours = linear(module.weight, module.bias, torch.float16, 40)
    x = random(3, 48).half()
    weight, bias = module.weight.half(), module.bias.half()
    assert torch.equal(ours(x), F.linear(x, weight, bias))


@torch.no_grad()
def test_a_linear_layer_reads_inputs_that_overlap_in_memory(packing: str) -> None:
    # The encoder's convolutions have such inputs.
    module = nn.Linear(48, 96).to(devices.chosen())
    ours = linear(module.weight, module.bias, torch.float32, 40)
    x = random(2, 50, 16).as_strided((2, 24, 48), (800, 32, 1))
    expected = F.gelu(module(x))
    torch.testing.assert_close(ours(x, gelu=True), expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_stacked_layers_give_their_outputs_one_after_the_other(packing: str) -> None:
    modules = [nn.Linear(48, 32), nn.Linear(48, 32, bias=False), nn.Linear(48, 64)]
    modules = [module.to(devices.chosen()) for module in modules]
    x = random(5, 48)
    expected = torch.cat([module(x) for module in modules], -1)
    ours = stacked(modules, torch.float32, 40)(x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_layer_norm_is_whispers_in_every_precision(dtype: torch.dtype) -> None:
    module = OfficialLayerNorm(48).to(devices.chosen())
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    x = (random(2, 3, 48) * 9).to(dtype)
    ours = LayerNorm(module)(x)
    assert ours.dtype == dtype
    assert torch.equal(ours, module(x))


def test_only_single_precision_on_a_cpu_is_packed() -> None:
    assert not onednn.serves(CPU, torch.float16)
    assert not onednn.serves(torch.device("cuda"), torch.float32)


def test_a_module_is_copied_only_to_another_device() -> None:
    module, elsewhere = nn.Linear(2, 3), torch.device("meta")
    assert on_device(module, CPU) is module
    copied = on_device(module, elsewhere)
    assert copied.weight.device == elsewhere
    assert copied.weight.shape == module.weight.shape
    assert module.weight.device == CPU
