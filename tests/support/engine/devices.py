"""Where the engine's tests run: the option `--device` of `pytest tests/engine`."""

import copy
import weakref

import pytest
import torch
from whisper.model import Whisper

CPU = torch.device("cpu")

_chosen = CPU
_twins: weakref.WeakKeyDictionary[Whisper, Whisper] = weakref.WeakKeyDictionary()


def choose(name: str) -> None:
    """Raises pytest.UsageError if there is no such device."""
    global _chosen
    if name == "emulated":
        from tests.support.engine import emulated_gpu

        emulated_gpu.install()
    if name == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: PyTorch finds no GPU")
        # Official code's convolutions round to TF32 by default; tokens are compared in full
        # precision.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    _chosen = torch.empty(0, device=name).device


def placed(model: Whisper) -> Whisper:
    """The model on the chosen device."""
    if _chosen.type != "emulated":
        return model.to(_chosen)
    moved = copy.deepcopy(model).to(_chosen)
    _twins[moved] = model
    return moved


def official(model: Whisper) -> Whisper:
    """The model to run OpenAI's code on: its twin on the CPU if it is on the emulated device.

    That code indexes tensors on a GPU with tensors on the CPU, which CUDA allows and the emulated
    device does not.
    """
    return _twins.get(model, model)


def chosen() -> torch.device:
    return _chosen


def on_cpu() -> bool:
    return _chosen == CPU
