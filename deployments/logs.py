"""The package's log lines, in Serve's own log. Expected errors are logged without traceback."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from deployments.contract.errors import WhisperServeError

_SERVE_LOGGER = logging.getLogger("ray.serve")


def log_through_serve() -> None:
    """Write the package's log lines to Serve's log. Every replica calls this at its start."""
    logger = logging.getLogger(__package__)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, _ServeHandler) for handler in logger.handlers):
        logger.addHandler(_ServeHandler())
    _SERVE_LOGGER.addFilter(_expected_errors)


class _ServeHandler(logging.Handler):
    """Hands each record to Serve's logger, and so to whatever handlers that one has at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        _SERVE_LOGGER.handle(record)


def error_location(error: BaseException) -> str:
    """File and line where the error was raised.

    A log may tell these where it may not tell the error's text, which can quote the request.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class Stages:
    """How long each part of a start took, in seconds; as text `imports=2.10 weights=0.21`.

    The first part begins when this is made.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds: dict[str, float] = {}

    def done(self, name: str) -> None:
        """The part of this name has just ended, and the next one begins."""
        now = self._clock()
        self._seconds[name] = now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """The sum of all parts so far."""
        return sum(self._seconds.values())

    def __str__(self) -> str:
        return " ".join(f"{name}={value:.2f}" for name, value in self._seconds.items())


def _expected_errors(record: logging.LogRecord) -> bool:
    # Serve logs every exception that leaves a replica at ERROR, with its traceback. The errors of
    # the contract are answers to a caller, and the router logs them.
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, WhisperServeError):
        return True
    record.msg, record.args = f"{record.getMessage()} {error.type}: {error}", ()
    record.exc_info = record.exc_text = None
    # A wrong request is not a fault of the service.
    return error.status >= 500
