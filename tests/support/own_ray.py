"""A Ray that stands for a user's own: started with `ray start`, and used with Serve's commands."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments import proxy_answers
from deployments.local import loopback
from tests.support.app import wait_for
from tools.weights import weights_environment

ROOT = Path(__file__).parents[2]
_PROGRAMS = Path(sys.executable).parent
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
    "metrics-export-port",
)


class OwnRay:
    """A running Ray.

    address: for `serve run`
    dashboard: the URL that `serve deploy` and `serve status` ask
    """

    def __init__(self, address: str, dashboard: str, environment: dict[str, str]):
        self.address = address
        self.dashboard = dashboard
        self._environment = environment

    def serve(self, *arguments: str) -> str:
        """What the `serve` command prints, which has to succeed."""
        return self._run([str(_PROGRAMS / "serve"), *arguments]).stdout

    def python(self, *arguments: str) -> str:
        """What a Python program tells on stderr that joins this Ray, and which has to succeed."""
        return self._run([sys.executable, *arguments], RAY_ADDRESS=self.address).stderr

    def _run(
        self, command: list[str], **variables: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """A `serve` command that runs until Ctrl-C."""
        command = [str(_PROGRAMS / "serve"), *arguments]
        with _process(command, self._environment, signal.SIGINT):
            yield


@contextlib.contextmanager
def own_ray() -> Iterator[OwnRay]:
    """A Ray of one machine, with the weights that the tests use. All of it ends with the block."""
    # A Ray that the tests run in this process has set variables that a user's shell does not have.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= weights_environment() | {
        "PYTHONPATH": str(ROOT),
        proxy_answers.VARIABLE: proxy_answers.CALLBACK,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Not pytest's own folder: a socket's path has to be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    free: set[int] = set()
    while len(free) < len(_PORTS):
        free.add(loopback.free_port("0.0.0.0"))
    ports = dict(zip(_PORTS, free, strict=True))
    command = [str(_PROGRAMS / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--temp-dir={folder}", "--object-store-memory=200000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    try:
        with _process(command, environment, signal.SIGTERM) as (process, log):

            def ended_or_started() -> bool:
                return process.poll() is not None or "--block" in log.read_text()

            with contextlib.suppress(AssertionError):
                wait_for(ended_or_started, 300)
            told = log.read_text()
            found = re.search(rf"[\d.]+:{ports['port']}\b", told)
            assert found and "--block" in told and process.poll() is None, told
            dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
            yield OwnRay(found[0], dashboard, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _process(
    command: Sequence[str], environment: dict[str, str], end: signal.Signals
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process, which the signal ends, and the file of its output."""
    with (
        tempfile.NamedTemporaryFile("wb", suffix=".log") as log,
        subprocess.Popen(
            # A shell starts its background jobs with SIGINT ignored, and a child inherits that.
            [sys.executable, "-c", _WITH_SIGINT, *command],
            env=environment,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield process, Path(log.name)
        finally:
            process.send_signal(end)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


_WITH_SIGINT = (
    "import os, signal, sys;"
    "signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
