"""Builds the Serve application from its typed arguments. Imports no torch: Serve runs this in the controller's
helper processes as well.
"""

import logging

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from deployments import api
from deployments.config import AppArgs, ModelArgs, max_batch_windows
from deployments.replica.whisper_model import WhisperModel
from deployments.router.router import Router

logger = logging.getLogger(__name__)

_CARD_QUERY_TIMEOUT_S = 60


class _Ingress(Router):
    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, once the Router is there."""
        return api.build(self)


def build_app(args: AppArgs) -> Application:
    """The router and one deployment for each model; applies the only `serve.ingress`."""
    shares = _gpu_shares(args)
    handles = {
        model.name: _model_deployment(args, model, shares[model.name])
        for model in args.models
    }
    router = serve.deployment(
        name="Router",
        # The router admits requests for each model itself; /health and /models must get past them.
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
    )(serve.ingress()(_Ingress))
    return router.bind(args, handles, shares)


def _model_deployment(args: AppArgs, model: ModelArgs, gpu_share: float) -> Application:
    min_replicas = args.min_replicas(model)
    max_concurrency = args.max_concurrency(model, gpu_share > 0)
    deployment = serve.deployment(
        name=model.deployment,
        # The router lets no more through; they may all have to go to one replica.
        max_ongoing_requests=max_concurrency,
        # A CPU is no resource to reserve here: the third model would never start on two cores.
        ray_actor_options={"num_cpus": 0, "num_gpus": gpu_share},
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": model.max_replicas,
            # A further replica is worth starting for what those there do not decode together.
            "target_ongoing_requests": min(
                max_batch_windows(gpu_share > 0),
                max(1, max_concurrency // model.max_replicas),
            ),
            "upscale_delay_s": 0,
            "downscale_delay_s": model.idle_s,
        },
        # The next request after a replica's death waits for this.
        health_check_period_s=1,
        # A replica that is to stop finishes what it has begun.
        graceful_shutdown_timeout_s=args.request_timeout_s,
    )(WhisperModel)
    return deployment.bind(model, min_replicas > 0, gpu_share)


def _gpu_shares(args: AppArgs) -> dict[str, float]:
    """What a replica of each model asks of one GPU: by default the VRAM it needs over the card's."""
    if not _on_gpu(args):
        return {model.name: 0.0 for model in args.models}
    card_gb = args.gpu_memory_gb or _card_memory_gb()
    return {model.name: _share(model, card_gb) for model in args.models}


def _on_gpu(args: AppArgs) -> bool:
    if args.device == "auto":
        # The cluster's, not this machine's: a head node may have no GPU.
        return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return args.device == "cuda"


def _share(model: ModelArgs, card_gb: float | None) -> float:
    if model.gpu_share is not None:
        return model.gpu_share
    if card_gb is None or model.official is None:
        return 1.0
    # Ray counts in ten-thousandths.
    return min(1.0, max(0.0001, round(model.official.vram_gb / card_gb, 4)))


def _card_memory_gb() -> float | None:
    """Memory of one card in GB (1e9 bytes), asked in a task on a machine that has one; None if it cannot be told."""
    # Ray knows no VRAM. A tiny share finds a GPU machine without waiting for a whole card.
    task = ray.remote(num_cpus=0, num_gpus=0.0001)(_card_memory)
    try:
        return float(ray.get(task.remote(), timeout=_CARD_QUERY_TIMEOUT_S)) / 1e9
    except Exception as error:  # noqa: BLE001 - a whole card is the safe answer
        logger.warning("event=card_memory_unknown error=%s", type(error).__name__)
        return None


def _card_memory() -> int:
    try:
        return _memory_by_driver()
    except Exception:  # noqa: BLE001 - PyTorch may know; importing it takes seconds of the start
        from deployments.replica.loading import card_memory

        return card_memory()


def _memory_by_driver() -> int:
    """Bytes of this machine's only card. Raises where there are several, which CUDA may count in another order."""
    import pynvml

    pynvml.nvmlInit()
    if pynvml.nvmlDeviceGetCount() != 1:
        raise LookupError("which card is meant is PyTorch's to tell")
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    return int(pynvml.nvmlDeviceGetMemoryInfo(card).total)
