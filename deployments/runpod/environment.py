"""Environment variables that Ray and RunPod's SDK read.

A variable that is set already keeps its value.
"""

import os
import secrets

_VARIABLES = {
    # Every port that Ray opens demands a token.
    "RAY_AUTH_MODE": "token",
    # Ray's metrics ports demand none, and nobody can scrape them here.
    "RAY_enable_metrics_collection": "false",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
    # Ray starts processes in reserve. While they wait they import Serve, which each needs first.
    "RAY_preload_python_modules": "ray.serve",
    # At DEBUG, its default level, the SDK prints whole results.
    "RUNPOD_LOG_LEVEL": "INFO",
    # The SDK's own checks import torch, open a CUDA context in this process, and want a route to
    # the internet.
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_SKIP_GPU_CHECK": "true",
}


def configure_environment() -> None:
    """Set the variables. Ray and the SDK read them when they are imported, so this comes first."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    # A new token for each worker.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
