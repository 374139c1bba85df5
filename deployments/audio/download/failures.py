"""What went wrong with a download, in words of this project's own.

Neither the URL nor anything that the host says reaches an error text or a log.
"""

import http.client
import math
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import requests
from requests import exceptions as rx
from urllib3 import exceptions as ux

from deployments.audio.download.limits import FetchLimits
from deployments.contract.errors import AudioHostError, AudioUrlError

_PHRASES = {int(status): status.phrase for status in HTTPStatus}
# Request Timeout, Too Early, Too Many Requests. Every 5xx gets another try as well.
_RETRIED = (408, 425, 429)


class TemporaryError(Exception):
    """This try has failed, and the next one may succeed.

    retry_after_s: how long the host asks to wait
    """

    def __init__(self, reason: str, retry_after_s: int = 0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class StalledError(TemporaryError):
    """The host has fallen silent: another try makes sense only if it can go on from here."""


def check_status(response: requests.Response, headers_withheld: bool) -> None:
    """Raise the failure that the status of the answer means.

    headers_withheld: whether a redirect to another origin has left the caller's headers behind
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    reason = f"HTTP {status} {_PHRASES.get(status, '')}".rstrip()
    if status in _RETRIED or 500 <= status < 600:
        raise TemporaryError(reason, _retry_after_s(response))
    if status in (401, 403) and headers_withheld:
        reason += (
            "; a redirect to another origin gets neither audio_headers nor credentials"
        )
    raise AudioUrlError(reason)


def _retry_after_s(response: requests.Response) -> int:
    """Seconds that the host asks to wait, which it may tell as a date; 0 where it does not ask."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    until = http_date(value)
    if until is None:
        return 0
    # The host's own clock, where it tells it: the two may disagree.
    now = http_date(response.headers.get("Date", "")) or datetime.now(UTC)
    return max(0, math.ceil((until - now).total_seconds()))


def http_date(value: str) -> datetime | None:
    """The time that a header names, or None for anything else."""
    try:
        date = parsedate_to_datetime(value)
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def meaning(error: Exception, limits: FetchLimits) -> Exception:
    """The failure behind an exception of requests or urllib3, with a text of ours."""
    causes = tuple(_causes(error))
    for kind, failure, reason in _MEANINGS:
        if any(isinstance(cause, kind) for cause in causes):
            return failure(reason.format(limits=limits))
    return TemporaryError("connection failed")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


_SLOW_CONNECT = "timed out after {limits.connect_timeout_s:g} s without a connection"
_SLOW_READ = "timed out after {limits.read_timeout_s:g} s without data"

# The first kind that is found among an exception's causes decides. A kind that is a case of another
# one, or may be its cause, therefore comes before it.
_MEANINGS: tuple[tuple[type[Exception], type[Exception], str], ...] = (
    (rx.ProxyError, TemporaryError, "the proxy cannot be reached"),
    (ssl.SSLCertVerificationError, AudioHostError, "TLS certificate not valid"),
    (socket.gaierror, TemporaryError, "host name could not be resolved"),
    (ConnectionRefusedError, TemporaryError, "connection refused"),
    (rx.ConnectTimeout, TemporaryError, _SLOW_CONNECT),
    (ux.ReadTimeoutError, StalledError, _SLOW_READ),
    (ConnectionError, TemporaryError, "connection cut"),
    (ux.NewConnectionError, TemporaryError, "host cannot be reached"),
    (http.client.IncompleteRead, TemporaryError, "connection cut"),
    (ssl.SSLEOFError, TemporaryError, "connection cut"),
    (ssl.SSLError, TemporaryError, "TLS connection failed"),
    (http.client.HTTPException, TemporaryError, "answer is not valid HTTP"),
    (rx.InvalidHeader, TemporaryError, "answer is not valid HTTP"),
    (rx.ConnectionError, TemporaryError, "connection failed"),
    (ValueError, AudioUrlError, "malformed URL"),
)
