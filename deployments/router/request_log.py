"""One line of the log for each request."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.contract.errors import WhisperServeError
from deployments.logs import error_location

logger = logging.getLogger(__name__)

# A caller's own id goes into the log, so it may hold only what fits into a line there.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass
class RequestLog:
    """What the log tells of one request; filled in while the request is answered.

    duration_s: seconds of audio
    queue_s: seconds spent waiting for a place and for slots
    """

    request_id: str
    model: str = "-"
    duration_s: float = 0.0
    queue_s: float = 0.0
    batch_windows: float = 0.0


@contextmanager
def logged_request(request_id: str | None) -> Iterator[RequestLog]:
    """Log the request that is answered within, and turn unforeseen errors into an answer.

    request_id: the caller's own; a new one where it is None or does not fit into a log line

    Raises WhisperServeError in place of an error that is none of the contract's.
    """
    own = request_id if _REQUEST_ID.fullmatch(request_id or "") else None
    entry = RequestLog(own or uuid.uuid4().hex)
    started = time.monotonic()
    status, level, reason = 200, logging.INFO, "ok"
    try:
        yield entry
    except WhisperServeError as error:
        status, reason = error.status, error.type
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
        logger.log(
            level,
            "request_id=%s model=%s status=%d reason=%s duration=%.2f seconds=%.3f"
            " queue=%.3f batch_windows=%.1f",
            entry.request_id,
            entry.model,
            status,
            reason,
            entry.duration_s,
            time.monotonic() - started,
            entry.queue_s,
            entry.batch_windows,
        )
