"""Download of an audio URL, bounded in size and in time, into a file without a name.

Every failure has a text of this module's own. Neither the URL nor anything that the host says
reaches an error text or a log.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, Self

import requests
from requests import exceptions as rx
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url
from urllib3 import exceptions as ux

from deployments.contract.errors import (
    AudioHostError,
    AudioUrlError,
    RequestCancelledError,
)

logger = logging.getLogger(__name__)
# urllib3 writes whole URLs, signatures included, into debug lines and into its warning about
# malformed headers. Each of its loggers is silenced by itself, because RunPod's SDK sets their
# parent's level when it is imported.
for _module in ("connection", "connectionpool", "poolmanager", "util.retry"):
    logging.getLogger(f"urllib3.{_module}").setLevel(logging.ERROR)

_LONGEST_RETRY_AFTER_S = 10
_CHUNK_BYTES = 1 << 16
_POLL_S = 0.1
_PHRASES = {int(status): status.phrase for status in HTTPStatus}

_ONLY_HTTP = "only http and https can be fetched, also after a redirect"
_SLOW_CONNECT = "timed out after {limits.connect_timeout_s:g} s without a connection"
_SLOW_READ = "timed out after {limits.read_timeout_s:g} s without data"


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one download.

    max_bytes: of the file, after any Content-Encoding is undone
    connect_timeout_s: to reach each address of the host, and again for the TLS handshake
    read_timeout_s: the longest silence of the host
    total_timeout_s: all tries and the waits between them; only the resolution of a name or a
        connect in progress overruns it
    back_offs_s: the wait before each further try after a temporary failure
    """

    max_bytes: int
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float
    back_offs_s: tuple[float, ...] = (0.5, 1.0)


@contextmanager
def fetch_audio(
    url: str, limits: FetchLimits, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[BinaryIO]:
    """Download `url` and yield it as a seekable file at its start, which is gone after the block.

    The file has no name on disk, so that even a killed process leaves nothing behind. Private
    addresses are not refused: the network's policy has to do that. Blocks.

    cancelled: called several times a second, also from another thread; true ends the download

    Raises AudioUrlError (the URL is at fault), AudioHostError (the host is), RequestCancelledError.
    """
    with tempfile.TemporaryFile() as file:
        with _Watchdog(limits.total_timeout_s, cancelled) as watchdog:
            _download(url, file, limits, watchdog)
        file.seek(0)
        yield file


def _download(
    url: str, file: BinaryIO, limits: FetchLimits, watchdog: _Watchdog
) -> None:
    for back_off_s in (*limits.back_offs_s, None):
        file.seek(0)
        file.truncate()
        try:
            return _download_once(url, file, limits, watchdog)
        except _TemporaryError as error:
            failure = error
        if back_off_s is not None:
            wait_s = max(back_off_s, failure.retry_after_s)
            logger.warning('event=download_retry wait=%g reason="%s"', wait_s, failure)
            watchdog.sleep(wait_s)
    raise AudioHostError(str(failure))


def _download_once(
    url: str, file: BinaryIO, limits: FetchLimits, watchdog: _Watchdog
) -> None:
    watchdog.check()
    timeout = (
        max(0.001, min(limits.connect_timeout_s, watchdog.remaining_s)),
        limits.read_timeout_s,
    )
    try:
        with (
            _Session(watchdog) as session,
            session.get(url, stream=True, timeout=timeout) as response,
        ):
            # Headers that the watchdog has cut short may look complete.
            watchdog.check()
            _check_status(response)
            _save(response, file, limits.max_bytes, watchdog)
        return
    except (rx.RequestException, ux.HTTPError, ValueError) as error:
        failure = _meaning(error, limits)
    # A connection that the watchdog has shut fails like one that the host has cut.
    watchdog.check()
    # Outside the except block: there the exception of requests, whose text holds the URL, would
    # become the context of this one.
    raise failure


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    reason = f"HTTP {status} {_PHRASES.get(status, '')}".rstrip()
    if status == 429 or 500 <= status < 600:
        failure = _TemporaryError(reason)
        failure.retry_after_s = _retry_after_s(response)
        raise failure
    raise AudioHostError(reason) if status == 408 else AudioUrlError(reason)


def _retry_after_s(response: requests.Response) -> int:
    """Seconds that the host asks to wait; 0 where it names a date or an unreasonably long time."""
    value = response.headers.get("Retry-After", "")
    seconds = int(value) if re.fullmatch("[0-9]{1,4}", value) else 0
    return seconds if seconds <= _LONGEST_RETRY_AFTER_S else 0


def _save(
    response: requests.Response, file: BinaryIO, max_bytes: int, watchdog: _Watchdog
) -> None:
    too_large = AudioUrlError(
        f"file is larger than the limit of {_size(max_bytes)} (max_download_bytes)"
    )
    if (response.raw.length_remaining or 0) > max_bytes:
        raise too_large
    for chunk in response.iter_content(_CHUNK_BYTES):
        watchdog.check()
        if file.tell() + len(chunk) > max_bytes:
            raise too_large
        file.write(chunk)
    # A connection that the watchdog has shut may look like the end of the body.
    watchdog.check()
    if file.tell() == 0:
        raise AudioUrlError("the file is empty")


def _size(n_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes % scale == 0:
            return f"{n_bytes // scale} {unit}"
    return f"{n_bytes} bytes"


class _TemporaryError(Exception):
    """This try has failed, and the next one may succeed."""

    retry_after_s = 0


def _meaning(error: Exception, limits: FetchLimits) -> Exception:
    """The failure behind an exception of requests or urllib3, with a text of ours."""
    causes = tuple(_causes(error))
    for kind, failure, reason in _MEANINGS:
        if any(isinstance(cause, kind) for cause in causes):
            return failure(reason.format(limits=limits))
    return _TemporaryError("connection failed")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


# The first kind that is found among an exception's causes decides. A kind that is a case of another
# one, or may be its cause, therefore comes before it.
_MEANINGS: tuple[tuple[type[Exception], type[Exception], str], ...] = (
    (rx.TooManyRedirects, AudioUrlError, "more than 10 redirects"),
    (rx.InvalidSchema, AudioUrlError, _ONLY_HTTP),
    (rx.MissingSchema, AudioUrlError, _ONLY_HTTP),
    (rx.ProxyError, _TemporaryError, "the proxy cannot be reached"),
    (ssl.SSLCertVerificationError, AudioHostError, "TLS certificate not valid"),
    (socket.gaierror, _TemporaryError, "host name could not be resolved"),
    (ConnectionRefusedError, _TemporaryError, "connection refused"),
    (rx.ConnectTimeout, _TemporaryError, _SLOW_CONNECT),
    (ux.ReadTimeoutError, AudioHostError, _SLOW_READ),
    (ConnectionError, _TemporaryError, "connection cut"),
    (ux.NewConnectionError, _TemporaryError, "host cannot be reached"),
    (http.client.IncompleteRead, _TemporaryError, "connection cut"),
    (ssl.SSLEOFError, _TemporaryError, "connection cut"),
    (ssl.SSLError, _TemporaryError, "TLS connection failed"),
    (rx.ContentDecodingError, AudioHostError, "damaged content encoding"),
    (http.client.HTTPException, _TemporaryError, "answer is not valid HTTP"),
    (rx.InvalidHeader, _TemporaryError, "answer is not valid HTTP"),
    (rx.ConnectionError, _TemporaryError, "connection failed"),
    (ValueError, AudioUrlError, "malformed URL"),
)


class _Watchdog:
    """Ends the blocking reads of one download at its deadline, or when its caller has left.

    A socket's own timeout counts for each read alone, so a host that sends a byte a second never
    exceeds it.
    """

    def __init__(self, total_s: float, cancelled: Callable[[], bool]) -> None:
        self._total_s = total_s
        self._deadline = time.monotonic() + total_s
        self._cancelled = cancelled
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    @property
    def remaining_s(self) -> float:
        return self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise if the download must not go on."""
        if self._cancelled():
            raise RequestCancelledError("The request was cancelled")
        if self.remaining_s <= 0:
            raise AudioHostError(f"timed out after {self._total_s:g} s in total")

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, _POLL_S))

    def watch(self, connected: socket.socket) -> None:
        # A duplicate, because the original may be closed, and its number used for another file,
        # while the watchdog shuts it.
        self._sockets.append(socket.socket(fileno=os.dup(connected.fileno())))

    def _run(self) -> None:
        while not self._done.wait(_POLL_S):
            if self.remaining_s <= 0 or self._cancelled():
                for sock in tuple(self._sockets):
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)


class _Session(requests.Session):
    """The session of one try. Every connection is watched, and .netrc is never read.

    Proxies and CA bundles come from the environment as usual.
    """

    def __init__(self, watchdog: _Watchdog) -> None:
        super().__init__()
        self.max_redirects = 10
        # requests reads .netrc unless `auth` is set.
        self.auth = _credentials_of_url
        self.hooks["response"] = [_drop_body_of_redirect]
        self.mount("http://", _WatchedAdapter(watchdog))
        self.mount("https://", _WatchedAdapter(watchdog))

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """The method of requests, less the part that reads .netrc."""
        strip: Any = self.should_strip_auth
        if strip(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)


def _credentials_of_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request


def _drop_body_of_redirect(response: requests.Response, **_: Any) -> None:
    # requests reads the whole body of a redirect into memory before it follows, and an endless body
    # would fill the memory.
    if response.is_redirect:
        response.close()


class _WatchedAdapter(HTTPAdapter):
    def __init__(self, watchdog: _Watchdog) -> None:
        self._watchdog = watchdog
        super().__init__(max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _watched(type(pool).ConnectionCls, self._watchdog)
        return pool


def _watched(connection_class: Any, watchdog: _Watchdog) -> type[Any]:
    class Watched(connection_class):
        def connect(self) -> None:
            try:
                super().connect()
            except TimeoutError as error:
                # urllib3 would report a TLS handshake that times out as a silent host.
                raise ux.ConnectTimeoutError() from error
            watchdog.watch(self.sock)

    return Watched
