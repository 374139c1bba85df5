"""From a request's file to its waveform."""

import asyncio
import contextvars
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import DecodedAudio, decode_audio
from deployments.audio.not_audio import kind_of_text
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import AudioUrlError, InvalidAudioError
from deployments.router.fetching import FetchedFile
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


class Decoder:
    """Decodes the files of any number of requests, as many at the same time as there are cores."""

    def __init__(self, args: AppArgs) -> None:
        self._threads = ThreadPoolExecutor(
            os.cpu_count(), thread_name_prefix="decoding"
        )
        self._max_audio_s = args.max_audio_s

    async def decode(
        self,
        fetched: FetchedFile,
        track: int | str | None = None,
        channel: int | None = None,
        on_stage: OnStage = ignore_stage,
    ) -> Waveform:
        """Decode a file. Cancelling the call ends the work soon.

        A call that is cancelled returns when nothing reads the file any more, so that its owner may
        close it.

        track, channel: as in `decode_audio`
        on_stage: called when the decoding begins

        Raises AudioUrlError, InvalidAudioError and InvalidRequestError.
        """
        on_stage(Stage(stage="decoding"))
        started = time.monotonic()
        cancelled = threading.Event()
        context = contextvars.copy_context()
        work = partial(
            context.run, self._decode, fetched, track, channel, cancelled.is_set
        )
        decoding = self._threads.submit(work)
        try:
            decoded = await asyncio.wrap_future(decoding)
        finally:
            cancelled.set()
            if not decoding.cancel():
                read = asyncio.wrap_future(decoding)
                await asyncio.gather(read, return_exceptions=True)
        return Waveform(decoded, fetched.download_s, time.monotonic() - started)

    def _decode(self, fetched, track, channel, cancelled) -> DecodedAudio:  # type: ignore[no-untyped-def]
        try:
            return decode_audio(
                fetched.file,
                self._max_audio_s,
                cancelled,
                track=track,
                channel=channel,
            )
        except InvalidAudioError:
            kind = kind_of_text(fetched.file) if fetched.remote else None
            if kind is None:
                raise
            text = f"the URL gives {kind}, not an audio file"
            raise AudioUrlError(text) from None
