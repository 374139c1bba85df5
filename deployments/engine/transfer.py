"""Copies between the host and the model's device, and the one place where the host waits for the device."""

from typing import Any

import torch
from torch import Tensor


def to_device(
    values: Any, device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """`torch.tensor(values, dtype=dtype, device=device)` without making the host wait.

    PyTorch's own call waits until a GPU has finished all earlier work. The source of this copy may be freed at once:
    CUDA reads unpinned memory before the call returns.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def wait_for(tensor: Tensor) -> list[list[bool]]:
    """The values of a tensor on the device. A decoding step calls this once, and waits nowhere else."""
    values: list[list[bool]] = tensor.cpu().tolist()
    return values
