"""What travels between the host and the model's device, and when the host waits for it."""

from typing import Any

import torch
from torch import Tensor


def to_device(
    values: Any, device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """`torch.tensor(values, dtype=dtype, device=device)`, for which the host does not wait.

    PyTorch's own waits until a GPU has done everything it was asked for before. A copy that nobody waits for must
    not lose its source, and this one cannot: CUDA reads memory that is not pinned before the call returns.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def wait_for(tensor: Tensor) -> list[list[bool]]:
    """The values of a tensor on the device: the only place of a decoding step where the host waits."""
    values: list[list[bool]] = tensor.cpu().tolist()
    return values
