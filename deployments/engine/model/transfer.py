"""Copies between host and device, and the only place where the host waits for the device."""

from typing import Any

import torch
from torch import Tensor


def to_device(
    values: Any, device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """`torch.tensor(values, dtype=dtype, device=device)` without making the host wait.

    PyTorch's own call waits until a GPU has finished all earlier work.
    """
    return send(torch.tensor(values, dtype=dtype), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without making the host wait.

    Only a copy from pinned memory never waits. PyTorch keeps that memory until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait_for(tensor: Tensor) -> list[list[bool]]:
    """The values of a tensor on the device.

    A decoding step calls this once and waits nowhere else.
    """
    values: list[list[bool]] = tensor.cpu().tolist()
    return values
