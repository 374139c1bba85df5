"""Ray and the application in this process: what `local` and `runpod_worker` have in common.

Importing this module is cheap: the application is imported where it is started, so that this can go on
while Ray comes up.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deployments.config import AppArgs
from deployments.logs import Stages

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ServeDeploySchema

CONFIG = Path(__file__).parent.parent / "serve_config.yaml"
RAY_LOGS = "/tmp/ray/session_latest/logs"
_OBJECT_STORE_BYTES = 1 << 30
_STATUS_INTERVAL_S = 0.05


def read_config(path: Path = CONFIG) -> tuple["ServeDeploySchema", AppArgs]:
    """The Serve configuration, validated by Ray, and the typed arguments of its one application.

    Raises pydantic.ValidationError.
    """
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    return config, AppArgs.model_validate(config.applications[0].args)


def read_args(path: Path = CONFIG) -> AppArgs:
    """The application's typed arguments alone, without importing Serve. Raises pydantic.ValidationError."""
    [application] = yaml.safe_load(path.read_text())["applications"]
    return AppArgs.model_validate(application.get("args") or {})


def start_ray(*, show_logs: bool) -> None:
    """A new Ray on this machine. It ends with the calling thread: call it from the main one.

    show_logs: replicas' log lines on stderr, besides Ray's log folder
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for variable in ("NO_PROXY", "no_proxy"):
        # No proxy can reach this machine's own servers, which replicas may be told to fetch from.
        os.environ[variable] = f"{os.environ.get(variable, '')},127.0.0.1".strip(",")
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=show_logs,
        logging_level=logging.WARNING,
    )


def start_app(
    config: "ServeDeploySchema",
    args: AppArgs,
    *,
    http_host: str | None = None,
    http_port: int | None = None,
    stages: Stages | None = None,
) -> "DeploymentHandle[Any]":
    """The application on the Ray that this process has started; gives the router's handle.

    http_host: instead of the configured one
    http_port: None: no HTTP
    stages: told when Serve runs and when the preloaded models do

    Raises RuntimeError if a preloaded model cannot start.
    """
    from ray import serve
    from ray.serve import RunTarget
    from ray.serve.config import HTTPOptions

    from deployments.app import build_app
    from deployments.router import APPLICATION

    stages = stages or Stages()
    http = config.http_options.model_dump() | {"port": http_port or 0}
    if http_host is not None:
        http["host"] = http_host
    serve.start(
        proxy_location="Disabled" if http_port is None else config.proxy_location,
        http_options=HTTPOptions(**http),
        logging_config=config.logging_config,
    )
    stages.done("serve")
    target = RunTarget(
        build_app(args),
        name=APPLICATION,
        route_prefix=config.applications[0].route_prefix,
        logging_config=config.logging_config,
    )
    # Serve itself would look once a second whether the application runs.
    [router] = serve.run_many([target], wait_for_applications_running=False)
    while (status := serve.status().applications[APPLICATION].status) != "RUNNING":
        if status == "DEPLOY_FAILED":
            raise RuntimeError("the application could not be deployed")
        time.sleep(_STATUS_INTERVAL_S)
    stages.done("models")
    return router


@contextlib.contextmanager
def running_app(
    config: "ServeDeploySchema", args: AppArgs, port: int, *, show_logs: bool = False
) -> Iterator[str]:
    """Run the application in a new local Ray; gives its base URL; ends all that it started.

    Raises RuntimeError if a preloaded model cannot start.
    """
    start_ray(show_logs=show_logs)
    try:
        start_app(config, args, http_port=port)
        yield f"http://{config.http_options.host}:{port}"
    finally:
        import ray
        from ray import serve

        with _uninterrupted():
            serve.shutdown()
            ray.shutdown()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Another Ctrl-C while all is being ended would leave processes behind."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
