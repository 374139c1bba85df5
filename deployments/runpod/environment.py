"""What Ray and RunPod's SDK are told by their environment in the worker's processes. What is set already stands."""

import os
import secrets
import sys


def prepare() -> None:
    """Called before either is imported."""
    # Every port that Ray opens demands this; a new one for each worker.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Its metrics ports demand none, on all interfaces, and nobody can scrape them here: no port, no server.
    os.environ.setdefault("RAY_enable_metrics_collection", "false")
    os.environ.setdefault("AUTOSCALER_METRIC_PORT", "-1")
    os.environ.setdefault("DASHBOARD_METRIC_PORT", "-1")
    # By processes that Ray starts in reserve: it is the first thing that each of them will need.
    os.environ.setdefault("RAY_preload_python_modules", "ray.serve")
    # At DEBUG, its default, the SDK prints whole results.
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    # Its own checks import torch, open a CUDA context in the handler's process and want a route to the internet.
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")

    # Ray looks for its dashboard's packages by importing this. Where they are missing, its agent opens no port for HTTP,
    # and half a second of imports is not waited for; `ray[serve]` always brings them along.
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]

    import cpuinfo

    # The SDK measures the processor when it is imported, which takes a second, for a debugger that is not used here.
    cpuinfo.get_cpu_info = lambda: {"brand_raw": "not measured"}
