"""The RunPod serverless worker: Ray and the application in one container.

On a queue-based endpoint it is fed with RunPod's jobs, on a load-balancing one with HTTP requests.

The order of the start is for speed:

1.  Log the GPU, its driver and the CUDA version. Read the settings. The health port opens first: it
    needs nothing. A GPU that PyTorch cannot use ends the worker here.
2.  Find the weights of the default model, or download them: an error is clearest before the start.
3.  Tell Ray and RunPod's SDK what they read from the environment when they are imported.
4.  Start Ray, whose processes take seconds to come up. Meanwhile one thread imports the application
    and the SDK, and another one reads the weights into the page cache.
5.  Start the application, with the default model loaded. Torch is imported in the replicas only.
6.  Ask the model how many windows it decodes together: this many jobs are taken at the same time,
    unless RUNPOD_MAX_CONCURRENCY says otherwise.
7.  Take jobs until SIGTERM.

On a load-balancing endpoint, RunPod's SDK is not imported, and 6 and 7 are to serve HTTP.

Exit status: 0 after SIGTERM and after a test job that succeeded; 1 where the service cannot start
or has died, and after a test job that failed.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments import checkpoints, launch, serve_config
from deployments.config import AppArgs
from deployments.contract.errors import (
    CheckpointError,
    DeviceError,
    ModelUnavailableError,
)
from deployments.logs import Stages
from deployments.ray_node import (
    StartError,
    log_folder,
    prepare_environment,
    start_ray,
)
from deployments.replica import nvidia
from deployments.runpod.environment import configure_environment
from deployments.runpod.health import HealthPort
from deployments.runpod.ports import all_interfaces, check_port
from deployments.runpod.processes import end_all_processes
from deployments.runpod.settings import Settings, SettingsError, read_settings
from deployments.serve_config import ConfigError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)


_REFUSED = (
    StartError,
    SettingsError,
    ConfigError,
    CheckpointError,
    ModelUnavailableError,
)


def main() -> int:
    """Run the worker; gives the exit status."""
    _end_at_sigterm()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("deployments").setLevel(logging.INFO)
    stages = Stages()
    logger.info("event=gpu %s", nvidia.summary())
    try:
        settings = read_settings(os.environ)
        _check_http_port(settings)
        health = _health_port(settings)
        args = settings.applied_to(serve_config.read_args())
        _check_gpu(args)
        router = _start(settings, args, stages)
        if settings.load_balancing:
            alive = _serve_http(router, settings, args, health, stages)
        else:
            alive = _do_jobs(router, settings, args, health, stages)
    except _REFUSED as error:
        logger.error("error: %s", error)
        return 1
    finally:
        # Ray ends with the process.
        launch.silence_serve()
    if not alive:
        end_all_processes(1)
    return 0


def import_application() -> None:
    """Import what takes long and is needed once Ray is up."""
    # Ray's processes, whose start is waited for, come first: this thread alone is nice to them.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    from deployments import app  # noqa: F401


def import_serving() -> None:
    """Import `deployments.runpod.serving`, and with it RunPod's SDK, which takes over a second."""
    from deployments.runpod import serving  # noqa: F401


def _do_jobs(
    router: "DeploymentHandle[Any]",
    settings: Settings,
    args: AppArgs,
    health: HealthPort | None,
    stages: Stages,
) -> bool:
    # Imported by now; at the head of this file it would come before the environment is set.
    from deployments.runpod import serving

    max_concurrency = serving.max_concurrency(router, settings, args)
    stages.done("first_answer")
    _report_ready(f"concurrency={max_concurrency}", args, health, stages)
    return serving.do_jobs(router, settings, args, max_concurrency)


def _serve_http(
    router: "DeploymentHandle[Any]",
    settings: Settings,
    args: AppArgs,
    health: HealthPort | None,
    stages: Stages,
) -> bool:
    from deployments.runpod import load_balancing

    for variable in settings.ignored:
        logger.warning("event=ignored_variable variable=%s endpoint=LB", variable)
    _report_ready(f"port={settings.http_port}", args, health, stages)

    def not_ready() -> None:
        if health is not None:
            health.ready = False

    return load_balancing.serve_http(router, not_ready)


def _report_ready(
    detail: str, args: AppArgs, health: HealthPort | None, stages: Stages
) -> None:
    """Log that the start is over, and answer so on the health port.

    detail: what this kind of worker has to say, as `key=value`
    """
    logger.info("event=ready model=%s %s %s", args.default_model, detail, stages)
    if health is not None:
        health.ready = True


def _end_at_sigterm() -> None:
    """During the start, SIGTERM ends this process and every one below it.

    PID 1 ignores SIGTERM unless a handler is set; what does the work sets its own later. No
    exception ends the start, because one that breaks off an import leaves a lock behind, on which
    another thread's import would wait for ever.
    """

    def end(*_: object) -> None:
        end_all_processes(0)

    signal.signal(signal.SIGTERM, end)


def _check_gpu(args: AppArgs) -> None:
    try:
        nvidia.check_this_machine(args.device)
    except DeviceError as error:
        raise StartError(
            f"{error}; docs/runpod.md, CUDA versions, says what to change"
        ) from None


def _check_http_port(settings: Settings) -> None:
    """Raises StartError if the port is taken: Serve would fail without naming the reason."""
    if settings.http_port is None:
        return
    try:
        check_port(settings.http_port)
    except OSError as error:
        variable = "PORT" if settings.load_balancing else "WHISPER_HTTP_PORT"
        raise StartError(f"{variable} {settings.http_port}: {error.strerror}") from None


def _health_port(settings: Settings) -> HealthPort | None:
    if settings.health_port is None:
        return None
    try:
        return HealthPort(settings.health_port)
    except OSError as error:
        raise StartError(
            f"PORT_HEALTH {settings.health_port}: {error.strerror}"
        ) from None


def _start(
    settings: Settings, args: AppArgs, stages: Stages
) -> "DeploymentHandle[Any]":
    """Start Ray and the application; gives the router's handle."""
    if settings.http_port is not None:
        launch.check_keys(all_interfaces())
    _read_ahead(_find_weights(args))
    configure_environment()
    prepare_environment()
    stages.done("settings")
    with ThreadPoolExecutor(1) as imports:
        application = imports.submit(import_application)
        if not settings.load_balancing:
            imports.submit(import_serving)
        # In the main thread: Ray's processes end with the thread that starts them.
        start_ray(show_logs=True)
        stages.done("ray")
        application.result()
        stages.done("imports")
        return _start_app(settings, args, stages)


def _start_app(
    settings: Settings, args: AppArgs, stages: Stages
) -> "DeploymentHandle[Any]":
    config, _ = serve_config.read_config()
    router_options = serve_config.deployment_options(config).get("Router", {})
    settings.check_not_overruled(router_options.get("user_config") or {})
    try:
        return launch.start_app(
            config,
            args,
            http_host=all_interfaces(),
            http_port=settings.http_port,
            stages=stages,
        )
    except DeviceError as error:
        raise StartError(str(error)) from None
    except RuntimeError:
        raise StartError(
            f"the application did not start: its log above, or {log_folder()}, says why"
        ) from None


def _find_weights(args: AppArgs) -> Path:
    model = args.model(args.default_model)
    return checkpoints.find(model.name, model.checkpoint) or checkpoints.fetch(
        model.name, model.checkpoint, progress=False
    )


def _read_ahead(path: Path) -> None:
    """Read a file into the page cache, in a thread. If that fails, the replica will say why."""

    def read() -> None:
        buffer = bytearray(1 << 20)
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    threading.Thread(target=read, daemon=True).start()
