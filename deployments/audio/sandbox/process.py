"""The zygote as its parent sees it: a process that is started when needed, and again if it dies."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from deployments.audio.sandbox.confinement import Layers, describe_machine

logger = logging.getLogger(__name__)

_PACKAGE = __package__ or ""
# A decoder that is taken over must not find the service's keys in its memory, so these alone are
# handed on.
_HANDED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
# A process with threads cannot be forked, and NumPy's OpenBLAS starts one for each core.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_STOPS_WITHIN_S = 5.0


class ZygoteProcess:
    """Any thread may call. A process that is no longer referred to ends as if it were closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def start(self) -> None:
        """Start the zygote if it does not run. It may be given jobs from now on."""
        with self._lock:
            self._started()

    def submit(self, message: bytes, descriptors: Sequence[int]) -> None:
        """Hand a job to the zygote, and start it first if it does not run.

        Where the zygote dies before it has read the job, the job's descriptors are closed there
        like those of a decoder that has died. Raises OSError.
        """
        with self._lock:
            try:
                socket.send_fds(self._started().control, [message], descriptors)
            except (BrokenPipeError, ConnectionResetError):
                self._running = None
                socket.send_fds(self._started().control, [message], descriptors)

    @property
    def pid(self) -> int | None:
        """The zygote's process; None before it has begun and after its end."""
        with self._lock:
            if self._running is None or self._running.state.ended:
                return None
            process = self._running.state.process
            return None if process is None else process.pid

    def kill(self) -> None:
        """End a zygote that does not do what it is told, and its decoders with it."""
        with self._lock:
            if self._running is not None:
                self._running.state.kill()

    def close(self) -> None:
        """End the zygote and its decoders, and wait until it has ended."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.control.close()
            running.keeper.join(_STOPS_WITHIN_S)
            running.state.kill()
            running.keeper.join()

    def _started(self) -> "_Running":
        if self._running is None or self._running.state.ended:
            self._running = _start()
        return self._running


class _State:
    """What the thread that keeps a zygote tells of it."""

    def __init__(self) -> None:
        self.ended = False
        self.process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


@dataclass(frozen=True)
class _Running:
    control: socket.socket
    state: _State
    keeper: threading.Thread


def _start() -> _Running:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    state = _State()
    # The kernel ends a zygote together with the thread that has started it, so that thread waits
    # for it. The thread does not hold the control socket, whose end is the zygote's.
    keeper = threading.Thread(
        target=_keep, args=(theirs, state), name="zygote", daemon=True
    )
    keeper.start()
    return _Running(ours, state, keeper)


def _keep(control: socket.socket, state: _State) -> None:
    """Start a zygote, log what it says of itself, and wait for its end."""
    descriptor = control.fileno()
    command = [sys.executable, "-P", "-m", _PACKAGE, str(descriptor), str(os.getpid())]
    try:
        with control:
            state.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                cwd="/",
                env=_environment(),
                # The Ctrl+C of a terminal is for the service, which lets its requests end.
                start_new_session=True,
            )
        with state.process as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                _log_start(process.pid, Layers(**json.loads(line)))
            status = process.wait()
        if status:
            logger.warning("event=decoder_ended pid=%d status=%d", process.pid, status)
    except OSError as error:
        logger.error("event=decoder_failed error=%s", error.strerror)
    finally:
        state.ended = True


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    # From wherever this process has its modules.
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return kept | _ONE_THREAD | {"PYTHONPATH": path}


def _log_start(process: int, layers: Layers) -> None:
    if layers.missing:
        logger.warning(
            "event=decoder_started pid=%d layers=%s missing=%s kernel=%s",
            process,
            layers,
            ",".join(layers.missing),
            describe_machine(),
        )
    else:
        logger.info("event=decoder_started pid=%d layers=%s", process, layers)
