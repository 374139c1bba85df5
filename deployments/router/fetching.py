"""The files of requests: downloads, in threads, and files that came with their requests."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from deployments.audio.disk import disk_full_reported
from deployments.audio.download import FetchLimits, UrlGuard, fetch_audio
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.router.audio_source import AudioSource, RemoteAudio
from deployments.router.refused_urls import count_refused_url
from deployments.router.stages import OnStage, ignore_stage


@dataclass(frozen=True)
class FetchedFile:
    """A request's file, on this machine's disk.

    download_s: how long its download took
    remote: whether it was downloaded
    """

    file: BinaryIO
    download_s: float
    remote: bool


class Fetcher:
    """Fetches the files of any number of requests at the same time."""

    def __init__(self, args: AppArgs) -> None:
        self._threads = ThreadPoolExecutor(
            args.max_downloads, thread_name_prefix="download"
        )
        self._limits = FetchLimits(
            max_bytes=args.max_download_bytes,
            connect_timeout_s=args.connect_timeout_s,
            read_timeout_s=args.read_timeout_s,
            total_timeout_s=args.download_timeout_s,
        )
        self._guard = UrlGuard(
            args.allow_hosts,
            args.refuse_networks,
            args.allow_private_networks,
            args.egress_proxy,
            on_refused=count_refused_url,
        )

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
        """The request's file, which is closed after the block. Cancelling ends the download soon.

        on_stage: called when a download begins

        Raises AudioUrlError, AudioHostError, and OverloadedError where the disk has no room.
        """
        started = time.monotonic()
        remote = isinstance(source, RemoteAudio)
        if isinstance(source, RemoteAudio):
            on_stage(Stage(stage="downloading"))
            source = await self._download(source)
        with source as file:
            yield FetchedFile(file, time.monotonic() - started, remote)

    async def _download(self, source: RemoteAudio) -> BinaryIO:
        cancelled = threading.Event()
        # In this request's context, for the request id that Serve puts into log lines.
        context = contextvars.copy_context()
        work = partial(context.run, self._fetch, source, cancelled)
        fetching = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(fetching)
        finally:
            cancelled.set()

    def _fetch(self, source: RemoteAudio, cancelled: threading.Event) -> BinaryIO:
        with disk_full_reported():
            return fetch_audio(
                source.url,
                self._limits,
                cancelled.is_set,
                source.headers,
                self._guard,
            )
