"""Builds the Serve application from its typed arguments.

It imports no torch, because Serve also runs the builder in a helper process of its controller.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from deployments import api
from deployments.config import AppArgs, ModelArgs, max_batch_windows
from deployments.gpu import gpu_shares
from deployments.replica.whisper_model import WhisperModel
from deployments.router.memory import give_back_large_buffers
from deployments.router.router import Router


class _Ingress(Router):
    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the Router was made."""
        give_back_large_buffers()
        return api.build(self)


def build_app(args: AppArgs) -> Application:
    """The router and one deployment for each model."""
    shares = gpu_shares(args)
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


def model_options(args: AppArgs, model: ModelArgs, gpu_share: float) -> dict[str, Any]:
    """The arguments of `serve.deployment` for a model."""
    on_gpu = gpu_share > 0
    max_concurrency = args.max_concurrency(model, on_gpu)
    return {
        "name": model.deployment,
        # The router lets no more through, and all of them may have to go to one replica.
        "max_ongoing_requests": max_concurrency,
        # Reserving a CPU for each replica would keep a third model from starting on two cores.
        "ray_actor_options": {"num_cpus": 0, "num_gpus": gpu_share},
        "autoscaling_config": {
            "min_replicas": args.min_replicas(model),
            "max_replicas": model.max_replicas,
            # A further replica is worth starting for requests that the running ones do not decode
            # together.
            "target_ongoing_requests": min(
                max_batch_windows(on_gpu),
                max(1, max_concurrency // model.max_replicas),
            ),
            "upscale_delay_s": 0,
            "downscale_delay_s": model.idle_s,
        },
        # After a replica's death the next request waits up to this long.
        "health_check_period_s": 1,
        # A replica that is told to stop finishes the requests that it has begun.
        "graceful_shutdown_timeout_s": args.request_timeout_s,
    }


def _model_deployment(args: AppArgs, model: ModelArgs, gpu_share: float) -> Application:
    deployment = serve.deployment(**model_options(args, model, gpu_share))(WhisperModel)
    return deployment.bind(model, args.min_replicas(model) > 0, gpu_share)
