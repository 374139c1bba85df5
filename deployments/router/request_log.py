"""One line of the log for each request, which is also counted for Prometheus."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from deployments.contract.errors import WhisperServeError
from deployments.keys import NO_KEY
from deployments.logs import error_location
from deployments.router.metrics import count_request

logger = logging.getLogger(__name__)

# The name of the API key with which the request came; a door sets it.
caller_key: ContextVar[str] = ContextVar("caller_key", default=NO_KEY)


def native_status(error: WhisperServeError) -> int:
    return error.status


# The HTTP status of an error; a door that answers with other statuses sets it.
status_of: ContextVar[Callable[[WhisperServeError], int]] = ContextVar(
    "status_of", default=native_status
)

# A caller's own id goes into the log, so it may hold only what fits into a line there.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass
class RequestLog:
    """What the log says about one request; filled in while the request is answered.

    duration_s: seconds of audio
    queue_s: seconds spent waiting for a place and for slots
    key: name of the caller's API key
    """

    request_id: str
    model: str = "-"
    duration_s: float = 0.0
    queue_s: float = 0.0
    batch_windows: float = 0.0
    key: str = field(default_factory=caller_key.get)


def valid_request_id(request_id: str | None) -> str:
    """The caller's own id; a new one where it is None or does not fit into a log line."""
    own = request_id if _REQUEST_ID.fullmatch(request_id or "") else None
    return own or uuid.uuid4().hex


def log_refusal(
    request_id: str | None, status: int, reason: str, seconds: float = 0.0
) -> None:
    """Log a request that a door has answered with an error, without the Router."""
    level = logging.WARNING if status >= 500 else logging.INFO
    _write(RequestLog(valid_request_id(request_id)), level, status, reason, seconds)


@contextmanager
def logged_request(
    request_id: str | None, *, successes: bool = True
) -> Iterator[RequestLog]:
    """Log the request that is answered within, and turn unforeseen errors into an answer.

    request_id: the caller's own, see `valid_request_id`
    successes: whether a success is logged; a door that hands the request on logs its failures only

    Raises WhisperServeError in place of an error that is none of the contract's.
    """
    entry = RequestLog(valid_request_id(request_id))
    started = time.monotonic()
    status, level, reason = 200, logging.INFO, "ok"
    try:
        yield entry
    except WhisperServeError as error:
        status, reason = status_of.get()(error), error.type
        level = logging.WARNING if status >= 500 else logging.INFO
        raise
    except (asyncio.CancelledError, GeneratorExit):
        status, reason = 499, "cancelled"
        raise
    except Exception as error:  # noqa: BLE001 - the error's text is not for the caller
        status, level = 500, logging.ERROR
        reason = f"{type(error).__name__}@{error_location(error)}"
        raise WhisperServeError("Internal error; the log names it") from None
    finally:
        if successes or status != 200:
            _write(entry, level, status, reason, time.monotonic() - started)


def _write(
    entry: RequestLog, level: int, status: int, reason: str, seconds: float
) -> None:
    logger.log(
        level,
        "request_id=%s model=%s status=%d reason=%s duration=%.2f seconds=%.3f"
        " queue=%.3f batch_windows=%.1f key=%s",
        entry.request_id,
        entry.model,
        status,
        reason,
        entry.duration_s,
        seconds,
        entry.queue_s,
        entry.batch_windows,
        entry.key,
    )
    audio_s = entry.duration_s if status == 200 else 0.0
    # The reason of an unforeseen error names its place, and metrics need few different labels.
    kind = reason.partition("@")[0] if status != 500 else WhisperServeError.type
    count_request(entry.model, status, kind, entry.key, audio_s)
