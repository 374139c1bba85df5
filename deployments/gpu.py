"""Which part of a GPU a replica of each model asks Ray for.

Ray counts GPUs in fractions and knows nothing of their memory, so a model's share is the memory
that it needs over the memory of one card.
"""

import logging

import ray
from ray.exceptions import RayTaskError

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import DeviceError
from deployments.replica import nvidia

logger = logging.getLogger(__name__)

# Ray counts GPUs in ten-thousandths.
_SMALLEST_SHARE = 0.0001
_CARD_QUERY_TIMEOUT_S = 60


def gpu_shares(args: AppArgs) -> dict[str, float]:
    """The share of one GPU for each model, by name; 0 for every model where no GPU is used.

    Raises DeviceError if a machine with a GPU is asked for its memory, and PyTorch cannot use it.
    """
    if not _uses_gpu(args):
        return {model.name: 0.0 for model in args.models}
    card_gb = args.gpu_memory_gb or card_memory_gb()
    return {model.name: _share(model, card_gb) for model in args.models}


def card_memory_gb() -> float | None:
    """Memory of one card in GB (1e9 bytes), as a machine with a GPU tells it; None if none does.

    Raises DeviceError where PyTorch cannot use the GPU of that machine.
    """
    # A tiny share finds a machine with a GPU without waiting for a whole card.
    task = ray.remote(num_cpus=0, num_gpus=_SMALLEST_SHARE)(card_memory)
    try:
        return float(ray.get(task.remote(), timeout=_CARD_QUERY_TIMEOUT_S)) / 1e9
    except Exception as error:  # noqa: BLE001 - whatever else went wrong, a whole card is the safe answer
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, DeviceError):
            raise cause from None
        logger.warning("event=card_memory_unknown error=%s", type(error).__name__)
        return None


def card_memory() -> int:
    """Bytes of this machine's GPU, or of its first one where it has several.

    Raises DeviceError where PyTorch cannot use the GPU.
    """
    if problem := nvidia.problem():
        raise DeviceError(problem)
    found = nvidia.driver()
    # CUDA may count several cards in another order than the driver.
    if found is not None and len(found.cards) == 1:
        return found.memory_bytes
    # Importing PyTorch takes seconds of the application's start.
    from deployments.replica.loading import card_memory as memory_by_torch

    return memory_by_torch()


def _uses_gpu(args: AppArgs) -> bool:
    if args.device == "auto":
        # The cluster decides, not this machine: a head node may have no GPU.
        return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return args.device == "cuda"


def _share(model: ModelArgs, card_gb: float | None) -> float:
    if model.gpu_share is not None:
        return model.gpu_share
    if card_gb is None or model.official is None:
        return 1.0
    return min(1.0, max(_SMALLEST_SHARE, round(model.official.vram_gb / card_gb, 4)))
