"""What must hold on a GPU, on an emulated device: results, threads, waits, operations of a step."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deployments.engine import Engine
from deployments.engine.upstream.decoding import plan_for
from tests.support.engine import devices, emulated_gpu
from tests.support.engine.calls import PATIENCE_S, assert_same
from tests.support.engine.emulated_gpu import Operation
from tests.support.engine.lively_whisper import BatchHarness, job, lively_whisper
from tests.support.engine.tiny_whisper import sounds
from tests.support.engine.window_cases import EOT, WORDS

pytestmark = pytest.mark.skipif(
    not devices.on_cpu(), reason="the other tests run on the chosen device"
)

# With five beams. A step takes 23 operations a layer, and some more when other windows take part
# than last time.
OPERATIONS_OF_A_STEP = {"base": 309, "medium": 723, "turbo": 263, "large-v3": 907}
OPERATIONS_OF_A_CHANGE = 11
# Reading the prompt of a first window takes a step and this much, and every further window takes
# two operations a layer.
OPERATIONS_OF_A_JOIN = 37
DECODERS = {
    "base": {"n_text_layer": 6},
    "medium": {"n_text_layer": 24},
    "turbo": {"n_text_layer": 4, "n_vocab": 51866},
    "large-v3": {"n_text_layer": 32, "n_vocab": 51866},
}


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    emulated_gpu.install()
    return torch.device(emulated_gpu.NAME, 0)


def asked_for(work: Any, *arguments: Any) -> list[Operation]:
    with torch.inference_mode(), emulated_gpu.watched() as operations:
        work(*arguments)
    return operations


def launched(operations: Sequence[Operation]) -> int:
    return sum(operation.launches for operation in operations)


def waits(operations: Sequence[Operation]) -> list[str]:
    return [operation.name for operation in operations if operation.waits]


@pytest.mark.parametrize("name", DECODERS)
def test_a_step_asks_for_no_more_operations_than_it_needs(
    device: torch.device, name: str
) -> None:
    layers, step = DECODERS[name]["n_text_layer"], OPERATIONS_OF_A_STEP[name]
    model = copy.deepcopy(lively_whisper(**DECODERS[name])).to(device)
    slots = BatchHarness(model, count=32, dtype=torch.float16)
    endless = job(model, beam_size=5, suppress_tokens=[EOT], sample_len=20)
    for windows in (1, 8, 32):
        numbers = [*range(windows)]
        plans = [plan_for(slots.facts, endless.options) for _ in numbers]
        joined = launched(asked_for(slots.batch.join, numbers, plans, numbers))
        together = launched(asked_for(slots.batch.step, numbers))
        again = launched(asked_for(slots.batch.step, numbers))
        assert again <= step
        assert together <= step + OPERATIONS_OF_A_CHANGE
        further = (windows - 1) * 2 * (layers + 1)
        assert joined <= step + OPERATIONS_OF_A_JOIN + further


MIXED: list[dict[str, Any]] = [
    {"beam_size": 5},
    {},
    {"beam_size": 2, "suppress_tokens": "-1,34308", "prompt": WORDS},
    {"temperature": 0.7, "best_of": 3, "without_timestamps": True},
    {"beam_size": 10, "suppress_tokens": None, "suppress_blank": False},
]


class NumbersAssigned(TorchFunctionMode):
    """Counts assignments of Python numbers at tensor indices: a GPU waits for each of them.

    PyTorch makes a tensor on the CPU of the number where the indexed tensor is on a GPU, and only
    there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__setitem__ and not isinstance(args[2], Tensor):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.count += any(isinstance(index, Tensor) for index in indices)
        return func(*args, **(kwargs or {}))


def test_an_assigned_number_is_noticed() -> None:
    x, index = torch.zeros(3, 2), torch.tensor([1])
    with NumbersAssigned() as numbers:
        x[0] = 1
        x[index] = torch.ones(1, 2)
        assert numbers.count == 0
        x[index] = 1
        x[index, 0] = True
        assert numbers.count == 2


def test_a_step_waits_for_the_device_once_whoever_takes_part(
    device: torch.device,
) -> None:
    model = copy.deepcopy(lively_whisper()).to(device)
    slots = BatchHarness(model, seed=3, count=len(MIXED) + 2, dtype=torch.float16)
    jobs = [job(model, seed, **options) for seed, options in enumerate(MIXED)]
    with NumbersAssigned() as numbers_assigned:
        assert waits(asked_for(slots.join, jobs)) == ["aten::_to_copy"]
        numbers = list(slots.live)
        for some in (numbers, numbers, numbers[1:], numbers[3:4], numbers[:2], numbers):
            assert waits(asked_for(slots.step, some)) == ["aten::_to_copy"]
    assert numbers_assigned.count == 0


REQUESTS: list[tuple[float, dict[str, Any]]] = [
    (33, {}),
    (5, {"beam_size": 5, "language": None}),
    (35, {"word_timestamps": True, "beam_size": 2}),
    (20, {"temperature": 0.6, "best_of": 4}),
    (12, {"initial_prompt": "Names: Ada, Grace.", "clip_timestamps": "1,4,8"}),
]


def transcribed(engine: Engine, number: int) -> dict[str, Any]:
    seconds, options = REQUESTS[number]
    brief: dict[str, Any] = {"language": "en", "temperature": 0.0, "sample_len": 8}
    return engine.transcribe(sounds(seconds, number), **brief | options)


def test_requests_have_the_results_that_they_have_on_the_cpu(
    device: torch.device,
) -> None:
    model = lively_whisper(n_audio_ctx=1500)
    numbers = range(len(REQUESTS))
    with Engine(model) as engine:
        expected = [transcribed(engine, number) for number in numbers]
    with (
        ThreadPoolExecutor(8, thread_name_prefix="caller") as callers,
        Engine(model, device=device, dtype=torch.float32) as engine,
        emulated_gpu.watched() as operations,
    ):
        calls = [callers.submit(transcribed, engine, number) for number in numbers]
        together = [call.result(PATIENCE_S) for call in calls]
    for ours, theirs in zip(together, expected, strict=True):
        assert_same(ours, theirs)
    # Only the engine's thread may give the device work.
    assert {operation.thread for operation in operations} == {"engine"}


def test_half_precision_is_the_default_on_a_gpu(device: torch.device) -> None:
    model = lively_whisper(n_audio_ctx=1500)
    with Engine(model, device=device) as engine, emulated_gpu.watched() as operations:
        result = transcribed(engine, 1)
    assert result["segments"]
    kernels = {operation.name for operation in operations}
    assert "aten::_scaled_dot_product_flash_attention" in kernels
    with (
        Engine(model, device=device, dtype=torch.float32) as engine,
        emulated_gpu.watched() as operations,
    ):
        transcribed(engine, 1)
    kernels = {operation.name for operation in operations}
    assert "aten::_scaled_dot_product_flash_attention" not in kernels
    assert "aten::_scaled_dot_product_efficient_attention" in kernels


def test_single_precision_is_not_rounded_to_tf32(device: torch.device) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with Engine(lively_whisper(), device=device, dtype=torch.float32):
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
