"""What this machine's NVIDIA driver reports, and whether this build of PyTorch can use it.

Nothing here imports torch, so the answers are there before anything slow is started.
"""

import importlib.util
import os
import runpy
from dataclasses import dataclass
from pathlib import Path

import pynvml

from deployments.contract.errors import DeviceError

# The oldest driver that runs programs of a major version of CUDA. It runs those of every minor
# version, but for features that came later (NVIDIA, "CUDA Compatibility", minor version
# compatibility, table 1).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
_DEVICE_FILES = "nvidia[0-9]*"


@dataclass(frozen=True)
class Driver:
    """An installed driver.

    cards: the names of the GPUs
    memory_bytes: of the first card; 0 where there is none
    version: of the driver, such as `570.86.15`
    cuda: the newest CUDA version whose programs the driver runs, such as `12.8`; None where the
        driver's CUDA library is missing
    """

    cards: tuple[str, ...]
    memory_bytes: int
    version: str
    cuda: str | None


@dataclass(frozen=True)
class TorchBuild:
    """The installed PyTorch. cuda: the version it was built for; None for a build without CUDA."""

    version: str
    cuda: str | None


def driver(devices: Path = Path("/dev")) -> Driver | None:
    """The driver of this machine; None where there is none.

    devices: the folder of the device files

    Raises DeviceError where there is a driver or a GPU, but no answer.
    """
    try:
        pynvml.nvmlInit()
        return _driver()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        if any(devices.glob(_DEVICE_FILES)):
            raise DeviceError(
                "there is a GPU, but NVIDIA's management library is missing or finds no driver"
                " (in a container NVIDIA_DRIVER_CAPABILITIES has to name compute,utility)"
            ) from None
        return None
    except pynvml.NVMLError as error:
        raise DeviceError(f"the NVIDIA driver does not answer ({error})") from None


def check_this_machine(device: str) -> None:
    """Refuse to start where the device that is wanted cannot be used on this machine.

    A GPU that PyTorch cannot use is no reason to compute on the CPU without a word.

    device: of the configuration: `auto`, `cuda` or `cpu`

    Raises DeviceError.
    """
    if device == "cpu":
        return
    if device == "auto" and "CUDA_VISIBLE_DEVICES" in os.environ:
        # Ray takes only the GPUs that the variable leaves, which may be none.
        return
    found = driver()
    if found is not None and found.cards:
        reason = problem()
        if reason is None and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            # The driver still lists the cards, but Ray would have none to give.
            reason = "`device` is cuda, and CUDA_VISIBLE_DEVICES is empty, so no GPU can be used"
    elif device == "cuda":
        reason = "`device` is cuda, and this machine has no NVIDIA GPU"
    else:
        reason = None
    if reason is not None:
        raise DeviceError(reason)


def torch_build() -> TorchBuild:
    """Read from PyTorch's file of versions, because an import of PyTorch takes seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    values = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(values["__version__"], values["cuda"])


def problem() -> str | None:
    """Why this build of PyTorch cannot use a GPU of this machine; None where nothing is known."""
    build = torch_build()
    if build.cuda is None:
        return f"this build of PyTorch ({build.version}) has no CUDA"
    try:
        found = driver()
    except DeviceError as error:
        return str(error)
    if found is None:
        return None
    if found.cuda is None:
        return (
            f"the NVIDIA driver {found.version} has no CUDA library here"
            " (in a container NVIDIA_DRIVER_CAPABILITIES has to name compute,utility)"
        )
    needed, known = _major(build.cuda), _major(found.cuda)
    if known >= needed:
        return None
    oldest = _OLDEST_DRIVER.get(needed)
    return (
        f"the NVIDIA driver {found.version} (CUDA {found.cuda}) is too old for this build of"
        f" PyTorch, which needs CUDA {build.cuda}"
        + (f", so driver {oldest} or newer" if oldest else "")
    )


def summary() -> str:
    """Cards, driver and versions, as `key=value` for a log line."""
    build = torch_build()
    torch = f"torch={build.version} torch_cuda={build.cuda or 'none'}"
    try:
        found = driver()
    except DeviceError as error:
        return f'cards=unknown reason="{error}" {torch}'
    if found is None:
        return f"cards=0 {torch}"
    card = f'card="{found.cards[0]}" ' if found.cards else ""
    return (
        f"cards={len(found.cards)} {card}memory_gb={found.memory_bytes / 1e9:.1f}"
        f" driver={found.version} cuda={found.cuda or 'none'} {torch}"
    )


def _driver() -> Driver:
    cards = [
        pynvml.nvmlDeviceGetHandleByIndex(index)
        for index in range(pynvml.nvmlDeviceGetCount())
    ]
    try:
        # Asked of the CUDA library that programs get here, which may be newer than the driver
        # (NVIDIA's package cuda-compat).
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{number // 1000}.{number % 1000 // 10}"
    except pynvml.NVMLError:
        cuda = None
    return Driver(
        cards=tuple(pynvml.nvmlDeviceGetName(card) for card in cards),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(cards[0]).total)
        if cards
        else 0,
        version=pynvml.nvmlSystemGetDriverVersion(),
        cuda=cuda,
    )


def _major(version: str) -> int:
    return int(version.partition(".")[0])
