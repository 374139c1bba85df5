"""A running RunPod worker of a test's own: the whole one, with its own Ray, or its loop alone."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.support.job_api import LIMIT_S, JobApi
from tools.weights import weights, weights_environment

ROOT = Path(__file__).parents[2]


class Worker:
    """A worker that does the jobs of `api`, with tiny.en unless the environment says otherwise.

    module: what is run, with its arguments
    """

    def __init__(
        self,
        api: JobApi,
        log: Path,
        *module: str,
        **environment: str,
    ) -> None:
        self.api = api
        self._processes: set[psutil.Process] = set()
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(module or ["deployments.runpod"])],
                env=os.environ
                | weights_environment()
                | {"WHISPER_MODEL": "tiny.en"}
                | api.environment()
                | environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until(self, holds: Callable[[], Any], timeout_s: float = LIMIT_S) -> None:
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def wait_until_taken(self, jobs: list[str]) -> None:
        self.wait_until(lambda: all(job in self.api.taken for job in jobs))

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log
            return "event=ready" in self.log

        self.wait_until(ready)

    def pids(self, pattern: str = "") -> list[int]:
        """The worker's processes whose command line has the pattern; also after its end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            self._processes |= {own, *own.children(recursive=True)}
        found = []
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if process.is_running() and re.search(pattern, command):
                    found.append(process.pid)
        return found

    def kill(self, pattern: str) -> None:
        """SIGKILL to the worker's processes whose command line the pattern is found in."""
        pids = self.pids(pattern)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_worker(log: Path, *urls: str, **environment: str) -> Iterator[Worker]:
    """A worker that is ready, with a job API of its own. SIGTERM ends it if it still runs.

    urls: of this machine's servers, from which the worker may fetch
    """
    environment["WHISPER_ALLOW_HOSTS"] = ",".join(urlsplit(url).netloc for url in urls)
    for model in ("tiny.en", "base"):
        weights(model)
    with JobApi() as api:
        worker = Worker(api, log, **environment)
        try:
            worker.wait_until_ready()
            yield worker
            if worker.process.poll() is None:
                worker.process.terminate()
                assert worker.process.wait(LIMIT_S) == 0, worker.log
        finally:
            worker.process.kill()
            worker.process.wait()
