"""The package's log lines in Serve's own log: one line an event, no tracebacks of expected failures."""

import logging
import time
from pathlib import Path

from deployments.contract.errors import WhisperServeError

_SERVE_LOGGER = "ray.serve"


def log_through_serve() -> None:
    """Called by every replica: hands the package's log lines to the handlers that Serve has set up."""
    serve_logger = logging.getLogger(_SERVE_LOGGER)
    package_logger = logging.getLogger(__package__)
    package_logger.handlers = serve_logger.handlers
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False
    serve_logger.addFilter(_without_traceback)


def error_location(error: BaseException) -> str:
    """File and line of the innermost frame: what a log may tell of an error whose text may quote the request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class Stages:
    """How long each part of a start took, for one line of the log: `imports=2.10 weights=0.21`, in seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def done(self, name: str) -> None:
        """The part of this name has just ended, and the next one begins."""
        now = time.monotonic()
        self._seconds[name] = now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """Of all so far."""
        return sum(self._seconds.values())

    def __str__(self) -> str:
        return " ".join(f"{name}={value:.2f}" for name, value in self._seconds.items())


def _without_traceback(record: logging.LogRecord) -> bool:
    # Serve logs every exception that leaves a replica with its traceback. Ours are answers to a caller,
    # logged where they were understood.
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, WhisperServeError):
        record.msg, record.args = f"{record.getMessage()} {error.type}: {error}", ()
        record.exc_info = record.exc_text = None
    return True
