"""A stand-in for NVIDIA's driver: what its library NVML answers, on a machine that has none."""

from types import SimpleNamespace

import pynvml
import pytest

from deployments.replica import nvidia
from deployments.replica.nvidia import TorchBuild

GIB = 1 << 30


def install_driver(
    monkeypatch: pytest.MonkeyPatch,
    *cards: str,
    version: str = "580.95.05",
    cuda: int | None = 13000,
    memory_bytes: int = 24 * GIB,
) -> None:
    """From now on pynvml answers as with this driver.

    cards: their names
    cuda: as CUDA's own library writes its version; None: the library is missing
    """

    def cuda_version() -> int:
        if cuda is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        return cuda

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda index: cards[index],
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=memory_bytes),
        "nvmlSystemGetDriverVersion": lambda: version,
        "nvmlSystemGetCudaDriverVersion_v2": cuda_version,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


def break_driver(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """From now on NVML fails with one of its error numbers."""

    def fail() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)


def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the machine has no GPU, whether it has one or not."""
    break_driver(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def install_torch(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, version: str = "2.13.0"
) -> None:
    """From now on the installed PyTorch counts as a build for this version of CUDA."""
    monkeypatch.setattr(nvidia, "torch_build", lambda: TorchBuild(version, cuda))
