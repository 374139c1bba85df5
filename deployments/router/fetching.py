"""The files of requests: downloads, in threads, and files that came with their requests."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from deployments.audio.disk import disk_full_reported
from deployments.audio.download import FetchLimits, UrlGuard, fetch_audio
from deployments.audio.spool import Share, Spool, SpoolFullError
from deployments.audio.throughput import window_s
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import OverloadedError
from deployments.router.audio_source import AudioSource, RemoteAudio
from deployments.router.download_metrics import report_downloads
from deployments.router.download_places import DownloadPlaces
from deployments.router.metrics import count_refused_url
from deployments.router.request_log import caller_key
from deployments.router.stages import OnStage, ignore_stage

# A download whose size is not known yet begins when there is room for so much of it.
_FIRST_BYTES = 1 << 20


@dataclass(frozen=True)
class FetchedFile:
    """A request's file, on this machine's disk.

    download_s: how long its download took
    remote: whether it was downloaded
    waited_s: how long the download waited before it began
    """

    file: BinaryIO
    download_s: float
    remote: bool
    waited_s: float = 0.0


class Fetcher:
    """Fetches the files of any number of requests at the same time.

    spool: what the files may take of the disk
    """

    def __init__(self, args: AppArgs, spool: Spool) -> None:
        self._spool = spool
        self._places = DownloadPlaces(args.max_downloads, args.max_waiting_requests)
        self._reported = False
        self._take_limits(args)

    @property
    def in_progress(self) -> int:
        """How many downloads have a place."""
        return self._places.held

    @property
    def waiting(self) -> int:
        """How many downloads wait for a place."""
        return self._places.waiting

    def set_limits(self, args: AppArgs) -> None:
        """Take other limits. Downloads in progress keep those that they began with."""
        self._take_limits(args)
        self._spool.log_if_disk_is_smaller()

    def _take_limits(self, args: AppArgs) -> None:
        self._limits = FetchLimits(
            max_bytes=min(args.max_download_bytes, args.max_spool_bytes),
            connect_timeout_s=args.connect_timeout_s,
            read_timeout_s=args.read_timeout_s,
            total_timeout_s=args.download_timeout_s,
            min_bytes_per_s=args.min_bytes_per_s,
            throughput_window_s=window_s(args.read_timeout_s),
        )
        self._guard = UrlGuard(
            args.allow_hosts,
            args.refuse_networks,
            args.allow_private_networks,
            args.egress_proxy,
            on_refused=count_refused_url,
        )
        # An executor cannot be resized. The threads of an old one end with their work.
        self._threads = ThreadPoolExecutor(
            args.max_downloads, thread_name_prefix="download"
        )
        self._wait_s = args.request_timeout_s
        self._places.resize(args.max_downloads, args.max_waiting_requests)
        self._spool.resize(args.max_spool_bytes)

    def check(self, source: AudioSource) -> None:
        """Raise AudioUrlError for a URL that needs no look-up to be refused."""
        if isinstance(source, RemoteAudio):
            self._guard.read(source.url)

    def log_exceptions(self) -> None:
        """Log what may be fetched beyond the default."""
        self._guard.log_exceptions()

    @asynccontextmanager
    async def fetched(
        self, source: AudioSource, on_stage: OnStage = ignore_stage
    ) -> AsyncIterator[FetchedFile]:
        """The request's file, which is closed after the block.

        A call that is cancelled returns when its download has ended, which is soon.

        on_stage: called when a download begins, and before that where it has to wait

        Raises AudioUrlError, AudioHostError, and OverloadedError where there is no room for the
        file, too many downloads wait, or this one has waited for too long.
        """
        if not self._reported:
            self._reported = True
            report_downloads(self._places, self._spool)
        if isinstance(source, RemoteAudio):
            fetched = await self._download(source, on_stage)
        else:
            fetched = FetchedFile(source, 0.0, remote=False)
        with fetched.file:
            yield fetched

    async def _download(self, source: RemoteAudio, on_stage: OnStage) -> FetchedFile:
        asked = time.monotonic()
        on_wait = partial(on_stage, Stage(stage="queued"))

        waited_s = 0.0

        async def attempt(room: int) -> FetchedFile:
            nonlocal waited_s, asked
            share = await self._room(room, on_wait)
            began = time.monotonic()
            waited_s += began - asked
            on_stage(Stage(stage="downloading"))
            try:
                file = await self._in_thread(source, share)
            finally:
                asked = time.monotonic()
            return FetchedFile(file, asked - began, True, waited_s)

        # The places are the host's that the URL names, at any port. A redirect to another host
        # changes nothing: its caller has asked for this one.
        host = self._guard.read(source.url).host.rstrip(".")
        async with self._places.one(caller_key.get(), host, on_wait, self._wait_s):
            try:
                return await attempt(min(_FIRST_BYTES, self._spool.max_bytes))
            except SpoolFullError as error:
                room = error.size
            # The first share is released by now: were two downloads to hold something while they
            # wait for more, they might wait for each other.
            return await attempt(room)

    async def _room(self, size: int, on_wait: Callable[[], None]) -> Share:
        """Raises OverloadedError where there is no room within `download_timeout_s`."""
        try:
            async with asyncio.timeout(self._limits.total_timeout_s):
                return await self._spool.room(size, caller_key.get(), on_wait)
        except TimeoutError:
            raise OverloadedError(self._spool.full_text) from None

    async def _in_thread(self, source: RemoteAudio, share: Share) -> BinaryIO:
        """Download into a file that has the share. Where that fails, the share is released."""
        cancelled = threading.Event()
        # In this request's context, for the request id that Serve puts into log lines.
        context = contextvars.copy_context()
        work = partial(context.run, self._fetch, source, share, cancelled)
        fetching = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(fetching)
        except asyncio.CancelledError:
            cancelled.set()
            if fetching.cancel():
                share.release()
            else:
                ended = asyncio.wrap_future(fetching)
                for file in await asyncio.gather(ended, return_exceptions=True):
                    if not isinstance(file, BaseException):
                        file.close()
            raise

    def _fetch(
        self, source: RemoteAudio, share: Share, cancelled: threading.Event
    ) -> BinaryIO:
        with disk_full_reported():
            return fetch_audio(
                source.url,
                self._limits,
                cancelled.is_set,
                source.headers,
                self._guard,
                share,
            )
