"""From a request's audio to a waveform: downloading and decoding, in threads."""

import asyncio
import contextvars
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import DecodedAudio, decode_audio
from deployments.audio.disk import disk_full_reported
from deployments.audio.download import FetchLimits, fetch_audio
from deployments.audio.not_audio import kind_of_text
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import AudioUrlError, InvalidAudioError
from deployments.contract.request import TranscriptionRequest, UploadRequest
from deployments.router.stages import OnStage, ignore_stage


@dataclass(frozen=True)
class Waveform:
    """Decoded audio, and how long it took to get."""

    decoded: DecodedAudio
    download_s: float
    decode_s: float

    @property
    def samples(self) -> np.ndarray:
        """int16 at 16 kHz, shape (samples,)"""
        return self.decoded.samples

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, repr=False)
class RemoteAudio:
    """A file to be downloaded.

    headers: the caller's, often secret
    """

    url: str
    headers: Mapping[str, str]


# A download, or the file that came inside or beside the request.
AudioSource = RemoteAudio | BinaryIO


def source_of(request: UploadRequest, upload: BinaryIO | None = None) -> AudioSource:
    """Where a request's audio is.

    upload: the file that came beside the request; None where the request itself names its audio

    Raises InvalidRequestError where the request has a text in which there is no file, and
    OverloadedError where the disk has no room for the file.
    """
    if upload is not None:
        return upload
    assert isinstance(request, TranscriptionRequest)
    pieces = request.inline_audio()
    if pieces is None:
        return RemoteAudio((request.audio or "").strip(), request.audio_headers or {})
    with disk_full_reported(), ExitStack() as stack:
        # On disk, because many such requests may wait.
        file = stack.enter_context(tempfile.TemporaryFile())
        file.writelines(pieces)
        file.seek(0)
        # AudioLoader closes the file, or it is closed when it is collected.
        stack.pop_all()
        return file


class AudioLoader:
    """Loads the audio of any number of requests at the same time.

    threads: how many; as many as requests are admitted, so that slow hosts behind one model's
        URLs do not hold up another model
    """

    def __init__(self, args: AppArgs, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="audio")
        self._max_audio_s = args.max_audio_s
        self._limits = FetchLimits(
            max_bytes=args.max_download_bytes,
            connect_timeout_s=args.connect_timeout_s,
            read_timeout_s=args.read_timeout_s,
            total_timeout_s=args.download_timeout_s,
        )

    async def load(
        self,
        source: AudioSource,
        track: int | str | None = None,
        channel: int | None = None,
        on_stage: OnStage = ignore_stage,
    ) -> Waveform:
        """Download and decode. Cancelling the call ends the work soon.

        A file is closed once it has been decoded. A call that is cancelled returns when no thread
        reads the file any more, so that its owner may close it.

        track, channel: as in `decode_audio`
        on_stage: called when the download and the decoding begin

        Raises AudioUrlError, AudioHostError, InvalidAudioError, InvalidRequestError, and
        OverloadedError where the disk has no room for the file.
        """
        cancelled = threading.Event()
        # In this request's context, for the request id that Serve puts into log lines.
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()

        def on_stage_in_loop(stage: Stage) -> None:
            loop.call_soon_threadsafe(on_stage, stage)

        work = partial(
            context.run, self._load, source, track, channel, cancelled, on_stage_in_loop
        )
        loading = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(loading)
        finally:
            cancelled.set()
            if not (isinstance(source, RemoteAudio) or loading.cancel()):
                read = asyncio.wrap_future(loading)
                await asyncio.gather(read, return_exceptions=True)

    def _load(
        self,
        source: AudioSource,
        track: int | str | None,
        channel: int | None,
        cancelled: threading.Event,
        on_stage: OnStage,
    ) -> Waveform:
        started = time.monotonic()
        if isinstance(source, RemoteAudio):
            on_stage(Stage(stage="downloading"))
        with disk_full_reported(), ExitStack() as stack:
            file = stack.enter_context(
                fetch_audio(source.url, self._limits, cancelled.is_set, source.headers)
                if isinstance(source, RemoteAudio)
                else source
            )
            downloaded = time.monotonic()
            on_stage(Stage(stage="decoding"))
            try:
                decoded = decode_audio(
                    file,
                    self._max_audio_s,
                    cancelled.is_set,
                    track=track,
                    channel=channel,
                )
            except InvalidAudioError:
                kind = kind_of_text(file) if isinstance(source, RemoteAudio) else None
                if kind is None:
                    raise
                text = f"the URL gives {kind}, not an audio file"
                raise AudioUrlError(text) from None
        return Waveform(decoded, downloaded - started, time.monotonic() - downloaded)
