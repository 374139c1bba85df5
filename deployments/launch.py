"""Starts Ray and the application, for `deployments.local` and `deployments.runpod`.

Importing this module is cheap. The application is imported where it is started, so that a caller
can import it while Ray starts.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deployments import serve_config
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import ModelUnavailableError
from deployments.keys import Keys, KeysError, check_reach
from deployments.logs import Stages
from deployments.ray_node import StartError, start_ray
from deployments.replica import nvidia

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ServeDeploySchema

_STATUS_INTERVAL_S = 5.0


def check_keys(http_host: str) -> None:
    """Check what the environment says of API keys, before an HTTP port opens.

    http_host: the address to listen on

    Raises StartError if it is wrong, or if other machines can reach the service and nobody has said
    whether they need a key.
    """
    try:
        check_reach(Keys.from_environment(os.environ), http_host)
    except KeysError as error:
        raise StartError(str(error)) from None


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

    Raises ConfigError if there is to be HTTP and the configuration opens none, DeviceError if the
    GPU cannot be used, ModelUnavailableError if a preloaded model cannot start for a known reason,
    StartError if `check_keys` raises it, or if a model or the Router has not started within
    `placement_timeout_s` and `model_start_timeout_s`, and RuntimeError if Serve or a model cannot
    start for another reason.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve import RunTarget
    from ray.serve.config import HTTPOptions

    from deployments.app import build_graph

    if http_port is not None:
        serve_config.require_http(config)
        # The commands and the worker check before they download weights and start Ray. This check
        # holds for every caller, because the port opens below.
        check_keys(config.http_options.host if http_host is None else http_host)
    stages = stages or Stages()
    [application] = config.applications
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
            tracing_config=config.tracing_config,
            controller_options=config.controller_options,
        )
    except RayError:
        raise RuntimeError("Serve did not start") from None
    stages.done("serve")
    target = RunTarget(
        build_graph(args, serve_config.deployment_options(config)),
        name=application.name,
        route_prefix=application.route_prefix,
        logging_config=application.logging_config or config.logging_config,
    )
    [router] = serve.run_many([target], wait_for_applications_running=False)
    limit = args.placement_timeout_s + args.model_start_timeout_s
    deadline = time.monotonic() + limit
    preloaded = [model for model in args.models if args.min_replicas(model) > 0]
    # All are asked before the first answer is awaited, so that the models load side by side.
    answers = {
        model.deployment: serve.get_deployment_handle(
            model.deployment, application.name
        ).ready.remote()
        for model in preloaded
    }
    answers["Router"] = router.health.remote()
    for deployment, answer in answers.items():
        try:
            _wait_for(answer, application.name, deadline)
        except RuntimeError:
            _raise_reason(preloaded, application.name)
            raise
        except TimeoutError:
            _raise_reason(preloaded, application.name)
            raise StartError(
                f"{deployment} has not started within {limit:g} s: it may ask for more CPUs, GPUs"
                " or memory than Ray has, or need a longer model_start_timeout_s"
            ) from None
    stages.done("models")
    return router


def _wait_for(answer: Any, application: str, deadline: float) -> None:
    """Wait for a replica's first answer.

    deadline: in the time of `time.monotonic`

    Raises RuntimeError if the application cannot start, and TimeoutError after the deadline: Serve
    itself waits without a limit for the resources that a replica asks for.

    Serve's own wait asks for the application's status every second. Each question costs a third of
    a second in this process and as much in the controller, while the models load.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    while True:
        try:
            answer.result(timeout_s=_STATUS_INTERVAL_S)
            return
        except TimeoutError:
            status = serve.status().applications[application].status
            failed = status == "DEPLOY_FAILED"
            if not failed and time.monotonic() > deadline:
                raise
        except (RayError, RayServeException):
            failed = True
        if failed:
            raise RuntimeError("the application could not be deployed") from None


def _raise_reason(models: list[ModelArgs], application: str) -> None:
    """Raises ModelUnavailableError for the first model that could not start for a known reason."""
    from deployments.router.start_failure import load_failure

    for model in models:
        if reason := load_failure(model, application):
            raise ModelUnavailableError(model.name, reason) from None


@contextlib.contextmanager
def running_app(
    config: "ServeDeploySchema", args: AppArgs, port: int, *, show_logs: bool = False
) -> Iterator[str]:
    """Run the application in a new local Ray; gives its base URL. At the end everything is stopped.

    Raises StartError if Ray cannot start, and ConfigError, DeviceError, ModelUnavailableError,
    StartError and RuntimeError as `start_app` does.
    """
    nvidia.check_this_machine(args.device)
    try:
        start_ray(show_logs=show_logs)
        start_app(config, args, http_port=port)
        yield serve_config.base_url(config, port)
    finally:
        import ray

        # Ray's end is Serve's end. `serve.shutdown` would first wait for the requests in work, and
        # Ray would report the end of Serve's controller as a failure.
        with _uninterrupted():
            silence_serve()
            ray.shutdown()


def silence_serve() -> None:
    """Call this before Ray ends.

    Threads of Serve in this process call Ray until the process ends, and would log with a traceback
    that Ray is gone.
    """
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)


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
