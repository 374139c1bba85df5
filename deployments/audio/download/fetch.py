"""Download of an audio URL, over as many tries as it takes, into a file without a name."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, cast

from requests import exceptions as rx
from urllib3 import exceptions as ux

from deployments.audio.download.content_encoding import undo_content_encoding
from deployments.audio.download.failures import (
    StalledError,
    TemporaryError,
    check_status,
    meaning,
)
from deployments.audio.download.limits import FetchLimits
from deployments.audio.download.resume import PartialFile
from deployments.audio.download.session import Answer, Session
from deployments.audio.download.throughput import HostThroughput
from deployments.audio.download.url_guard import UrlGuard
from deployments.audio.download.watchdog import Watchdog
from deployments.audio.spool import Share, Spool, SpooledFile
from deployments.contract.errors import AudioHostError, AudioUrlError
from deployments.keys import NO_KEY

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
# urllib3 waits for this much of a chunked body, also where the host is slow.
_PIECE_OF_CHUNKED_BYTES = 1 << 12
# After a try that brings at least this many bytes, the list of back-offs begins again.
_PROGRESS_BYTES = 1 << 16


def fetch_audio(
    url: str,
    limits: FetchLimits,
    cancelled: Callable[[], bool] = lambda: False,
    headers: Mapping[str, str] | None = None,
    guard: UrlGuard | None = None,
    share: Share | None = None,
) -> BinaryIO:
    """Download `url` into a seekable file, which is given at its start and is gone when closed.

    The file has no name on disk, so that even a killed process leaves nothing behind. Blocks.

    cancelled: called several times a second, also from another thread; true ends the download
    headers: sent to the URL's origin, and left behind at a redirect to another one
    guard: judges the URL and where its host is; None: public addresses alone may be fetched from
    share: what the file may take of a spool; released when the file is closed, or here in an error

    Raises AudioUrlError (the URL is at fault), AudioHostError (the host is), RequestCancelledError,
    SpoolFullError where the host tells a size for which there is no room now, and OverloadedError
    where room runs out later, or where too many host names wait to be resolved.
    Neither the URL nor the headers are in the text of an error or in a log.
    """
    with ExitStack() as stack:
        share = share or Share(Spool(sys.maxsize), NO_KEY)
        stack.callback(share.release)
        file = stack.enter_context(SpooledFile(share))
        throughput = HostThroughput(limits)
        with Watchdog(limits.total_timeout_s, throughput, cancelled) as watchdog:
            _Download(
                url, headers or {}, limits, watchdog, throughput, guard or UrlGuard()
            ).into(file)
        file.seek(0)
        stack.pop_all()
        return cast(BinaryIO, file)


class _Download:
    """All tries of one download."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        limits: FetchLimits,
        watchdog: Watchdog,
        throughput: HostThroughput,
        guard: UrlGuard,
    ) -> None:
        self._guard = guard
        self._url = url
        self._headers = headers
        self._limits = limits
        self._watchdog = watchdog
        self._throughput = throughput

    def into(self, file: SpooledFile) -> None:
        self._share = file.share
        partial = PartialFile(cast(BinaryIO, file))
        furthest = 0
        back_offs = list(self._limits.back_offs_s)
        while (failure := self._try(partial)) is not None:
            if partial.resumable and partial.size - furthest >= _PROGRESS_BYTES:
                furthest = partial.size
                back_offs = list(self._limits.back_offs_s)
            if isinstance(failure, StalledError) and not partial.resumable:
                back_offs = []
            if not back_offs:
                raise AudioHostError(str(failure))
            self._wait(back_offs.pop(0), failure)
        size = partial.size

        def check_unpacked(n_bytes: int) -> None:
            self._check_size(n_bytes)
            # Both lie on the disk until the file is unpacked.
            self._share.received(size + n_bytes)

        undo_content_encoding(partial.file, partial.content_encoding, check_unpacked)
        if file.seek(0, os.SEEK_END) == 0:
            raise AudioUrlError("the file is empty")

    def _wait(self, back_off_s: float, failure: TemporaryError) -> None:
        if failure.retry_after_s > self._watchdog.remaining_s:
            raise AudioHostError(
                f"{failure}; the host asks to wait {failure.retry_after_s} s, which is longer"
                f" than this download may take ({self._limits.total_timeout_s:g} s)"
            )
        wait_s = max(back_off_s, failure.retry_after_s)
        logger.warning('event=download_retry wait=%g reason="%s"', wait_s, failure)
        self._watchdog.sleep(wait_s)

    def _try(self, partial: PartialFile) -> TemporaryError | None:
        """One request, with its redirects. Gives the failure, if another try may succeed."""
        self._watchdog.check()
        self._throughput.request_sent()
        try:
            with (
                Session(self._watchdog, self._limits, self._guard) as session,
                session.fetch(
                    self._guard.read(self._url), self._headers, partial.headers()
                ) as answer,
            ):
                # Headers that the watchdog has cut short may look complete.
                self._watchdog.check()
                self._throughput.answer_begun()
                self._save(answer, partial)
            return None
        except TemporaryError as error:
            return error
        except (rx.RequestException, ux.HTTPError, ValueError) as error:
            failure = meaning(error, self._limits)
        finally:
            self._throughput.pause()
            self._watchdog.release()
        # A connection that the watchdog has shut fails like one that the host has cut.
        self._watchdog.check()
        if isinstance(failure, TemporaryError):
            return failure
        # Outside the except block, whose exception would become the context of this one.
        raise failure

    def _save(self, answer: Answer, partial: PartialFile) -> None:
        try:
            check_status(answer.response, answer.headers_withheld)
        except AudioUrlError as error:
            if partial.size == 0:
                raise
            # Some hosts refuse a Range, and the rest may be there no more: the whole file is asked
            # for before the refusal is believed.
            partial.restart()
            raise TemporaryError(str(error.args[0])) from None
        partial.begin(answer.response)
        self._check_size(partial.total or 0)
        self._share.reserve(partial.total or 0)
        self._throughput.expect((partial.total or partial.size) - partial.size)
        for chunk in _pieces(answer.response.raw):
            self._throughput.received(len(chunk))
            self._check_size(partial.size + len(chunk))
            partial.file.write(chunk)
        # A connection that the watchdog has shut may look like the end of the body.
        self._watchdog.check()
        partial.end()

    def _check_size(self, n_bytes: int) -> None:
        self._watchdog.check()
        self._limits.check_size(n_bytes)


def _pieces(raw: Any) -> Iterator[bytes]:
    """The body as it arrives, for the throughput to be known at any time."""
    if raw.chunked:
        yield from raw.stream(_PIECE_OF_CHUNKED_BYTES, decode_content=False)
        return
    while piece := raw.read1(_CHUNK_BYTES, decode_content=False):
        yield piece
