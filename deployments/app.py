"""Builds the Serve application from its typed arguments.

It imports no torch, because Serve also runs the builder in a helper process of its controller.
"""

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments import api
from deployments.config import AppArgs, ModelArgs, max_batch_windows
from deployments.gpu import gpu_shares
from deployments.keys import Keys
from deployments.replica import scaling
from deployments.replica.serve_ports import keep_ports_on_loopback
from deployments.replica.whisper_model import WhisperModel
from deployments.router.memory import give_back_large_buffers
from deployments.router.router import Router

# Serve's own limit would also hold back questions to a busy replica, such as whether it is ready.
_NO_LIMIT = 100_000
# Serve kills a model's replica that has not finished in time. The Router stops this much later, so
# that it can still answer the requests that the replica had.
_LAST_ANSWERS_S = 10
# At an update Serve stops an old replica when the new one runs, so that there is always one.
_SURGE_PERCENT = 100
# By name, because Serve makes a copy of the function for its controller.
_SCALING_POLICY = f"{scaling.__name__}:{scaling.replicas_wanted.__name__}"


class _Ingress(Router):
    def __init__(
        self,
        args: AppArgs,
        handles: Mapping[str, DeploymentHandle[Any]],
        gpu_shares: Mapping[str, float],
    ) -> None:
        application = serve.get_replica_context().app_name
        super().__init__(args, handles, gpu_shares, application=application)
        self.start()

    async def check_health(self) -> None:
        """Called by Serve, for the first time before it sends requests here."""
        keep_ports_on_loopback()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve in the replica, after the Router was made."""
        give_back_large_buffers()
        return api.build(self, Keys.from_environment(os.environ))


def build_app(args: AppArgs) -> Application:
    """The router and one deployment for each model. Serve calls this with the YAML's `args`."""
    return build_graph(args, {})


def build_graph(
    args: AppArgs, replaced: Mapping[str, Mapping[str, Any]]
) -> Application:
    """As `build_app`, with the options of the YAML's section `deployments` applied.

    replaced: by deployment, options in place of the code's; `serve run` and `serve deploy` apply
        the section themselves, after they have called `build_app`
    """
    shares = gpu_shares(args)
    handles = {
        model.name: _model_deployment(args, model, shares[model.name], replaced)
        for model in args.models
    }
    router = serve.deployment(
        name="Router",
        # The router admits requests for each model itself.
        max_ongoing_requests=_NO_LIMIT,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        # No other limits than those of `args`; a `user_config` in the YAML stands in its place.
        user_config={},
        graceful_shutdown_timeout_s=args.drain_timeout_s + _LAST_ANSWERS_S,
        max_surge_percent=_SURGE_PERCENT,
    )(serve.ingress()(_Ingress))
    router = router.options(**replaced.get("Router", {}))
    return router.bind(args, handles, shares)


def model_options(args: AppArgs, model: ModelArgs, gpu_share: float) -> dict[str, Any]:
    """The arguments of `serve.deployment` for a model."""
    on_gpu = gpu_share > 0
    max_concurrency = args.max_concurrency(model, on_gpu)
    return {
        "name": model.deployment,
        # A replica declines requests itself when it has enough of them.
        "max_ongoing_requests": _NO_LIMIT,
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
            # Serve starts a model anew if its replica stops within this time after a request.
            "look_back_period_s": 15,
            "downscale_to_zero_delay_s": 0,
            "policy": {"policy_function": _SCALING_POLICY},
        },
        # After a replica's death the next request waits up to this long.
        "health_check_period_s": 1,
        # A replica that is told to stop finishes the requests that it has begun.
        "graceful_shutdown_timeout_s": args.drain_timeout_s,
        "max_surge_percent": _SURGE_PERCENT,
    }


def _model_deployment(
    args: AppArgs,
    model: ModelArgs,
    gpu_share: float,
    replaced: Mapping[str, Mapping[str, Any]],
) -> Application:
    deployment = serve.deployment(**model_options(args, model, gpu_share))(WhisperModel)
    deployment = deployment.options(**replaced.get(model.deployment, {}))
    return deployment.bind(
        model, args.min_replicas(model) > 0, gpu_share, args.max_decode_rate(model)
    )
