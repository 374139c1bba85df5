"""A Ray of this process's own, on this machine: its environment, its folder, its token, its start.

Ray reads a part of its environment when it is imported, so a program calls `prepare_environment`
before that. Importing this module imports no Ray.
"""

import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deployments import proxy_answers
from deployments.cpus import CpuThreadsError, cpu_threads
from deployments.keys import KEYS_FILE

_OBJECT_STORE_BYTES = 1 << 30
# Ray starts this many processes at once, in reserve: for Serve's controller and proxy, the Router
# and the preloaded model. By default there are as many as the host has cores. The service's own
# deployments reserve no CPU. A `num_cpus` under `deployments` in the YAML has to fit into this
# number.
_NUM_CPUS = 4
_LOOPBACK = "127.0.0.1"
_NO_GRPC_PROXY = "no_grpc_proxy"
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# What a Ray reads only when it is imported.
_VARIABLES_OF_IMPORT = {
    # Every port that Ray opens demands a token. A new Ray does this by default, but then prints a
    # warning.
    "RAY_AUTH_MODE": "token",
    # Without "clusters", Ray gives its node the address 127.0.0.1, and all of its processes listen
    # there alone. It asks this on every system, whatever the name says, and replaces an address
    # 127.0.0.1 that it is given in any other way.
    _LOOPBACK_VARIABLE: "0",
}
# The address of a Unix socket holds 107 bytes. A socket of Ray adds this to its folder's path:
# "/session_2026-11-26_16-22-05_909123_4194304/sockets/plasma_store".
_LONGEST_RAY_FOLDER = 107 - 65

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a call of Serve's own threads after Ray's end would start a second Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray would otherwise drain work before it obeys a SIGTERM, although there is none while it
    # starts.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # By default Ray starts workers at niceness 15, and models would stand still beside any other
    # work.
    "RAY_worker_niceness": "0",
    # Serve's default (5 s) gives up on the proxy when its imports are slow, for example from a cold
    # disk.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    proxy_answers.VARIABLE: proxy_answers.CALLBACK,
    # Ray's own threads, whose numbers follow the host's cores by default.
    "RAY_num_server_call_thread": "1",
    "RAY_core_worker_num_server_call_thread": "1",
    "RAY_gcs_server_rpc_server_thread_num": "1",
    "RAY_gcs_server_rpc_client_thread_num": "1",
    "RAY_object_manager_rpc_threads_num": "2",
    "RAY_num_grpc_internal_threads": "4",
    "RAY_worker_num_grpc_internal_threads": "2",
    # NumPy's library for matrices, which nothing here needs, would start a thread for each core in
    # each process.
    "OPENBLAS_NUM_THREADS": "1",
}


class StartError(Exception):
    """The service cannot start on this machine. The text is one line that says what to set."""


def prepare_environment() -> None:
    """Settle what Ray reads from the environment. A variable that is set keeps its value.

    Raises StartError.
    """
    try:
        cpu_threads()
    except CpuThreadsError as error:
        raise StartError(str(error)) from None
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if file := os.environ.get(KEYS_FILE, "").strip():
        # The Router's process has another working directory.
        os.environ[KEYS_FILE] = os.path.abspath(file)
    if "ray" not in sys.modules:
        # Ray's other processes import it anew. If they read what this one has not, they look for
        # its ports at another address: the metrics, for example, are lost.
        for name, value in _VARIABLES_OF_IMPORT.items():
            os.environ.setdefault(name, value)
    _keep_loopback_from_proxies()
    if not sys.stderr.isatty():
        # The lines of Ray's workers would hold colour codes in a file as well.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:
        raise StartError(
            "there is no folder for temporary files that can be written: set TMPDIR to one"
        ) from None
    os.environ["RAY_TMPDIR"] = str(_ray_tmpdir())
    if not _has_home():
        os.environ["HOME"] = temporary
    _choose_token()


def _keep_loopback_from_proxies() -> None:
    """Ray's processes tell their metrics by gRPC, which asks a user's proxy even for loopback.

    The variable is gRPC's own, so that nothing else obeys it. gRPC reads it in place of `no_proxy`.
    """
    given = os.environ.get(_NO_GRPC_PROXY) or os.environ.get("no_proxy") or ""
    hosts = [host for host in given.split(",") if host]
    if _LOOPBACK not in hosts:
        os.environ[_NO_GRPC_PROXY] = ",".join([*hosts, _LOOPBACK])


def start_ray(*, show_logs: bool) -> None:
    """Start a new Ray on this machine.

    Ray ends with the thread that calls this, so call it from the main thread. The process keeps
    its handler of SIGTERM.

    show_logs: whether the replicas' log lines also go to stderr; they are always in `log_folder`

    Raises StartError.
    """
    prepare_environment()
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    terminated = False
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=_NUM_CPUS,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=show_logs,
            logging_level=logging.WARNING,
        )
    except SystemExit:
        # This is how Ray's own handler of SIGTERM ends its start.
        terminated = True
    except Exception as error:  # noqa: BLE001 - Ray raises many types, and its log tells the reason
        raise StartError(
            f"Ray did not start ({type(error).__name__}): see {log_folder()}"
        ) from None
    finally:
        # Ray has replaced the handler by one that aborts the process with a trace.
        signal.signal(signal.SIGTERM, on_sigterm)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def log_folder() -> Path:
    """Where Ray and Serve write their logs."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest/logs")


def handle_environment() -> dict[str, str]:
    """The variables with which another process of this user reaches the Ray of this process.

    The token is not among them if it was given by RAY_AUTH_TOKEN: it is a secret of the user's.
    """
    import ray

    mode = os.environ.get("RAY_AUTH_MODE", "token")
    variables = {
        "RAY_AUTH_MODE": mode,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        # Otherwise Ray would look for this address on the machine's other interface. Where it is
        # unset, Ray has its own default on Linux.
        _LOOPBACK_VARIABLE: os.environ.get(_LOOPBACK_VARIABLE, "1"),
    }
    if mode == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        variables["RAY_AUTH_TOKEN_PATH"] = str(_token_path())
    return variables


def _ray_tmpdir() -> Path:
    """The folder for Ray's own folder `ray`.

    Ray takes RAY_TMPDIR, TMPDIR or /tmp, and fails with a trace where it cannot write there, where
    its folder is another user's, or where the path is too long for a socket.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    candidates = [chosen] if chosen else list(_tmpdirs())
    for folder in map(Path, candidates):
        if _is_usable(folder / "ray"):
            return folder
    longest = _LONGEST_RAY_FOLDER - len("/ray")
    raise StartError(
        f"Ray cannot use {chosen or 'any folder for temporary files'}: set RAY_TMPDIR to a folder"
        f" that can be written, whose path has at most {longest} bytes"
    )


def _tmpdirs() -> Iterator[str]:
    yield tempfile.gettempdir()
    yield "/tmp"
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        yield f"{folder}/ray-{os.geteuid()}"


def _is_usable(folder: Path) -> bool:
    if len(os.fsencode(folder)) > _LONGEST_RAY_FOLDER:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In a folder of another user, that user could replace Ray's files.
        own = folder.stat().st_uid == os.geteuid()
        return own and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _has_home() -> bool:
    # A user without an entry in the password file has a home only by the variable.
    try:
        Path.home()
        return True
    except RuntimeError:
        return False


def _token_path() -> Path:
    chosen = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(chosen) if chosen else Path.home() / ".ray" / "auth_token"


def _choose_token() -> None:
    """Let Ray keep its token where it does by default, or, where it cannot, beside its sessions."""
    if (
        os.environ.get("RAY_AUTH_MODE", "token") != "token"
        or "RAY_AUTH_TOKEN" in os.environ
    ):
        return
    if os.access(_token_path(), os.R_OK):
        return
    path = _token_path()
    if not _write_token(path):
        path = Path(os.environ["RAY_TMPDIR"], "ray", "auth_token")
        if not os.access(path, os.R_OK) and not _write_token(path):
            raise StartError(
                f"Ray's token cannot be written to {_token_path()}:"
                " set RAY_AUTH_TOKEN_PATH to a file that can be written"
            )
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _write_token(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", opener=_private) as file:
            file.write(secrets.token_hex(32))
        return True
    except OSError:
        return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
