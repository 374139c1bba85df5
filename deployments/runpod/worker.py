"""The RunPod serverless worker: starts Ray and the application in its container, and forwards jobs to the Serve handle.

    python -m deployments.runpod.worker [--test_input JSON]

Without a job API in the environment it does the job of --test_input, or of test_input.json, and ends.

The order of start-up is for speed: first the health port, which needs nothing; then Ray, whose processes take
seconds to come up, while a thread imports the application and the SDK; torch only in the replicas.
"""

import asyncio
import contextlib
import http.server
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.logs import Stages

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from deployments.config import AppArgs
    from deployments.runpod.settings import Settings

logger = logging.getLogger("deployments.runpod.worker")

_ALL_INTERFACES = "0.0.0.0"
_FIRST_ANSWER_S = 60.0
_WATCH_INTERVAL_S = 1.0
# The router may be silent for as long: Serve replaces it when it dies, and the machine may be busy.
_ROUTER_PATIENCE_S = 60.0


class StartError(Exception):
    """The worker cannot start. Its text says what to change."""


def main() -> int:
    """0 after SIGTERM and after a test job that succeeded; 1 where the service could not start, or has died."""
    # Until the SDK takes it over; the first process of a container would be deaf to it.
    signal.signal(signal.SIGTERM, _exit)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("deployments").setLevel(logging.INFO)
    stages = Stages()
    try:
        health = _Health(os.environ.get("PORT_HEALTH", ""))
        settings = _settings()
        args, router = _start(settings, stages)
        slots = _slots(args)
    except StartError as error:
        logger.error("error: %s", error)
        return 1

    from deployments.runpod import loop as runpod_sdk
    from deployments.runpod.handler import JobHandler

    jobs = JobHandler(router, settings, args)
    service = _Service(router)

    async def watch() -> None:
        await service.death()
        jobs.fail_all()

    stages.done("first_answer")
    concurrency = settings.max_concurrency or slots
    logger.info(
        "event=ready model=%s concurrency=%d %s",
        *(args.default_model, concurrency, stages),
    )
    health.ready = True
    runpod_sdk.run(jobs.handle, concurrency, watch)
    if service.died:
        # Ray's own farewell would wait for what is gone.
        _end_all()
    return 0


def _exit(*_: object) -> None:
    sys.exit(0)


def _end_all() -> None:
    """This process, with status 1, and every one below it."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    sys.stderr.flush()
    os._exit(1)


def _settings() -> "Settings":
    from deployments.runpod.settings import SettingsError, read_settings

    try:
        return read_settings(os.environ)
    except SettingsError as error:
        raise StartError(error) from None


def _start(
    settings: "Settings", stages: Stages
) -> "tuple[AppArgs, DeploymentHandle[Any]]":
    """Ray and the application, with the default model loaded."""
    from deployments import launch
    from deployments.runpod import environment as runpod_environment
    from deployments.runpod import heartbeat as runpod_heartbeat

    args = launch.read_args()
    _preload(settings, args)
    _fetch_weights(args)
    runpod_environment.prepare()
    runpod_heartbeat.prepare()
    stages.done("settings")
    imports = ThreadPoolExecutor(1).submit(_import_the_rest)
    # In this thread, with which Ray's processes end.
    launch.start_ray(show_logs=True)
    # Ray has put its own in its place.
    signal.signal(signal.SIGTERM, _exit)
    stages.done("ray")
    imports.result()
    stages.done("imports")
    config, _ = launch.read_config()
    try:
        router = launch.start_app(
            config,
            args,
            http_host=_ALL_INTERFACES,
            http_port=settings.http_port,
            stages=stages,
        )
    except RuntimeError:
        raise StartError(
            f"the application did not start: its log above, or {launch.RAY_LOGS}, says why"
        ) from None
    return args, router


def _import_the_rest() -> None:
    """What takes long to import and is not needed for Ray to come up."""
    # This thread alone: Ray's processes, whose start is waited for, come first.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    from deployments import app  # noqa: F401
    from deployments.runpod import handler as runpod_jobs  # noqa: F401
    from deployments.runpod import loop as runpod_sdk  # noqa: F401


def _preload(settings: "Settings", args: "AppArgs") -> None:
    """Make the environment's model the default one, which is loaded at start."""
    from deployments.contract.errors import InvalidRequestError
    from deployments.runpod.settings import SettingsError

    name = settings.model or args.default_model
    try:
        model = args.model(name)
    except InvalidRequestError as error:
        raise StartError(f"WHISPER_MODEL: {error}") from None
    args.default_model = model.name
    model.min_replicas = max(1, args.min_replicas(model))
    try:
        settings.check_language(model)
    except SettingsError as error:
        raise StartError(error) from None


def _fetch_weights(args: "AppArgs") -> None:
    """Before the application starts, for a clear error; where they are at hand they are read ahead."""
    from deployments import checkpoints
    from deployments.contract.errors import CheckpointError

    model = args.model(args.default_model)
    try:
        found = checkpoints.find(model.name, model.checkpoint) or checkpoints.fetch(
            model.name, model.checkpoint, progress=False
        )
    except CheckpointError as error:
        raise StartError(error) from None
    threading.Thread(target=_read_ahead, args=(found,), daemon=True).start()


def _read_ahead(path: Path) -> None:
    """Into the page cache, while Ray comes up; a file that cannot be read is the replica's to tell."""
    buffer = bytearray(1 << 20)
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _slots(args: "AppArgs") -> int:
    """How many windows the default model's engine decodes together."""
    from ray import serve

    from deployments.config import APPLICATION

    model = args.model(args.default_model)
    replica = serve.get_deployment_handle(model.deployment, APPLICATION)
    try:
        answer = replica.slots.remote().result(timeout_s=_FIRST_ANSWER_S)
        return int(answer.slots)
    except Exception as error:  # noqa: BLE001 - whatever it was, there is no worker without it
        reason = type(error).__name__
        raise StartError(f"model '{model.name}' does not answer ({reason})") from None


class _Service:
    """Watches Ray and the router. What cannot recover counts as dead."""

    def __init__(self, router: "DeploymentHandle[Any]") -> None:
        import psutil

        self._router = router
        self._processes = {
            process.name(): process
            for process in psutil.Process().children()
            if process.name() in ("gcs_server", "raylet")
        }
        self.died = False

    async def death(self) -> None:
        """Returns when the service is dead."""
        answered = time.monotonic()
        while not self.died:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if gone := [name for name, p in self._processes.items() if not _runs(p)]:
                self._die(f"{gone[0]}_ended")
            elif await self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > _ROUTER_PATIENCE_S:
                self._die("router_silent")

    async def _answers(self) -> bool:
        # However it fails, the next one may succeed.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_ROUTER_PATIENCE_S / 4):
                await self._router.health.remote()
                return True
        return False

    def _die(self, reason: str) -> None:
        logger.error("event=service_died reason=%s", reason)
        self.died = True


def _runs(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class _Health:
    """`GET /ping` on RunPod's health port: 204 while starting, 200 when ready. No port: no server."""

    def __init__(self, port: str) -> None:
        self.ready = False
        if not port:
            return
        health = self

        class Ping(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/ping"
                self.send_response((200 if health.ready else 204) if found else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        try:
            # The console writes numbers as it likes.
            address = ("", int(float(port)))
            server = http.server.ThreadingHTTPServer(address, Ping)
        except (ValueError, OverflowError):
            raise StartError(f"PORT_HEALTH must be a port, not '{port[:20]}'") from None
        except OSError as error:
            raise StartError(f"PORT_HEALTH {port}: {error.strerror}") from None
        threading.Thread(target=server.serve_forever, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
