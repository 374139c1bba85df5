"""Starts Ray and the application, for `deployments.local` and `deployments.runpod`.

Importing this module is cheap. The application is imported where it is started, so that a caller
can import it while Ray starts.
"""

import contextlib
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deployments.config import AppArgs
from deployments.logs import Stages
from deployments.ray_node import start_ray

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ServeDeploySchema

CONFIG = Path(__file__).parent.parent / "serve_config.yaml"
_STATUS_INTERVAL_S = 5.0


def read_config(path: Path = CONFIG) -> tuple["ServeDeploySchema", AppArgs]:
    """The Serve configuration, validated by Ray, and the typed arguments of its one application.

    Raises pydantic.ValidationError.
    """
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    return config, AppArgs.model_validate(config.applications[0].args)


def read_args(path: Path = CONFIG) -> AppArgs:
    """The application's typed arguments alone, read without importing Serve.

    Raises pydantic.ValidationError.
    """
    [application] = yaml.safe_load(path.read_text())["applications"]
    return AppArgs.model_validate(application.get("args") or {})


def start_app(
    config: "ServeDeploySchema",
    args: AppArgs,
    *,
    http_host: str | None = None,
    http_port: int | None = None,
    stages: Stages | None = None,
) -> "DeploymentHandle[Any]":
    """Start the application on the Ray that this process has started; gives the router's handle.

    http_host: the address to listen on; None: the configured one
    http_port: the port to listen on; None: there is no HTTP
    stages: notes when Serve runs and when the preloaded models do

    Raises RuntimeError if Serve or a preloaded model cannot start.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve import RunTarget
    from ray.serve.config import HTTPOptions

    from deployments.app import build_app
    from deployments.config import APPLICATION

    stages = stages or Stages()
    # In this process Serve writes INFO lines to stderr, whatever its configured level is.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = config.http_options.model_dump() | {"port": http_port or 0}
    if http_host is not None:
        http["host"] = http_host
    try:
        serve.start(
            proxy_location="Disabled" if http_port is None else config.proxy_location,
            http_options=HTTPOptions(**http),
            logging_config=config.logging_config,
        )
    except RayError:
        raise RuntimeError("Serve did not start") from None
    stages.done("serve")
    target = RunTarget(
        build_app(args),
        name=APPLICATION,
        route_prefix=config.applications[0].route_prefix,
        logging_config=config.logging_config,
    )
    [router] = serve.run_many([target], wait_for_applications_running=False)
    preloaded = [m.deployment for m in args.models if args.min_replicas(m) > 0]
    models = [serve.get_deployment_handle(name, APPLICATION) for name in preloaded]
    # All are asked before the first answer is awaited, so that the models load side by side.
    answers = [model.ready.remote() for model in models] + [router.health.remote()]
    for answer in answers:
        _wait_for(answer)
    stages.done("models")
    return router


def _wait_for(answer: Any) -> None:
    """Wait for a replica's first answer. Raises RuntimeError if the application cannot start.

    Serve's own wait asks for the application's status every second. Each question costs a third of
    a second in this process and as much in the controller, while the models load.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from deployments.config import APPLICATION

    while True:
        try:
            answer.result(timeout_s=_STATUS_INTERVAL_S)
            return
        except TimeoutError:
            status = serve.status().applications[APPLICATION].status
            failed = status == "DEPLOY_FAILED"
        except (RayError, RayServeException):
            failed = True
        if failed:
            raise RuntimeError("the application could not be deployed") from None


@contextlib.contextmanager
def running_app(
    config: "ServeDeploySchema", args: AppArgs, port: int, *, show_logs: bool = False
) -> Iterator[str]:
    """Run the application in a new local Ray; gives its base URL. At the end everything is stopped.

    Raises StartError if Ray cannot start, and RuntimeError if a preloaded model cannot.
    """
    try:
        start_ray(show_logs=show_logs)
        start_app(config, args, http_port=port)
        yield base_url(config.http_options.host, port)
    finally:
        import ray

        # Ray's end is Serve's end. `serve.shutdown` would first wait for the requests in work, and
        # Ray would report the end of Serve's controller as a failure.
        with _uninterrupted():
            # Threads of Serve in this process still call Ray, and would log that it is gone.
            logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
            ray.shutdown()


def base_url(host: str, port: int) -> str:
    """The URL at which a caller on this machine reaches what listens on this host and port."""
    # A server can listen on all addresses, but a client has to name one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore signals: a second Ctrl-C during the shutdown would leave processes behind."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
