"""Why no replica of a model has started, as far as Serve and Ray know."""

import re

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentStatusOverview

from deployments.config import ModelArgs
from deployments.contract.errors import ModelUnavailableError

# Serve does not run or does not know the application; Serve's controller or Ray does not answer.
_NO_ANSWER = (RayServeException, RayError, KeyError)


class NoReplicaError(ModelUnavailableError):
    """No replica has answered, and the reason that the error names is a guess.

    The router looks for a better reason before it answers the caller.
    """


def start_failure(model: ModelArgs, gpu_share: float) -> str | None:
    """The reason for a ModelUnavailableError; None if nothing is known. Blocks.

    gpu_share: the share of one GPU that a replica asks for; 0: none

    Called in a replica of the model's application.
    """
    try:
        application = serve.get_replica_context().app_name
        status = _status(model, application)
        if reason := _load_failure(model, status):
            return reason
        if status.status == "DEPLOY_FAILED":
            return "it could not be started, and its log says why"
        if gpu_share and not ray.cluster_resources().get("GPU"):
            return "it needs a GPU, and there is none in this Ray"
    except _NO_ANSWER:
        pass
    return None


def load_failure(model: ModelArgs, application: str) -> str | None:
    """Why a replica could not load a preloaded model; None if none has failed. Blocks."""
    try:
        return _load_failure(model, _status(model, application))
    except _NO_ANSWER:
        return None


def _status(model: ModelArgs, application: str) -> DeploymentStatusOverview:
    return serve.status().applications[application].deployments[model.deployment]


def _load_failure(model: ModelArgs, status: DeploymentStatusOverview) -> str | None:
    if status.status == "HEALTHY":
        # The message may be of an earlier time.
        return None
    # Serve keeps the traceback of the last constructor that failed, which ends with its error.
    prefix = re.escape(str(ModelUnavailableError(model.name, "")))
    reasons = re.findall(f"{prefix}(.+)", status.message)
    return str(reasons[-1]).strip() if reasons else None
