"""From a request's file to its waveform."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import DecodedAudio
from deployments.audio.sandbox.child import TOO_COMPLEX
from deployments.audio.sandbox.client import (
    DecoderDiedError,
    DecoderFailedError,
    DecoderLostError,
    DecoderStarvedError,
    Sandbox,
)
from deployments.audio.sandbox.messages import Job
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import (
    AudioTooComplexError,
    InvalidAudioError,
    OverloadedError,
    ServiceUnavailableError,
)
from deployments.cpus import available_cpus
from deployments.router.fetching import FetchedFile
from deployments.router.metrics import count_decoder_death
from deployments.router.stages import OnStage, ignore_stage

logger = logging.getLogger(__name__)

# A decoder that dies of its file in this way has used up its time of a CPU.
_TOO_LONG = ("SIGXCPU", "SIGKILL")


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
    """Decodes the files of any number of requests, as many at the same time as there are cores.

    Further files wait in the order in which they came.

    sandbox: where they are decoded; None: one of its own
    """

    def __init__(self, args: AppArgs, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox or Sandbox()
        self._cores = asyncio.Semaphore(available_cpus())
        self.set_limits(args)

    def set_limits(self, args: AppArgs) -> None:
        """Change the longest recording allowed, for the files whose decoding has not begun."""
        self._max_audio_s = args.max_audio_s

    def start(self) -> None:
        """Start now what the first file would otherwise wait for."""
        self._sandbox.start()

    async def decode(
        self,
        fetched: FetchedFile,
        track: int | str | None = None,
        channel: int | None = None,
        on_stage: OnStage = ignore_stage,
    ) -> Waveform:
        """Decode a file, which its owner may close after the call.

        A call that is cancelled returns at once, and its work ends soon.

        track, channel: as in `decode_audio`
        on_stage: called when the file begins to wait for its decoding

        Raises AudioUrlError, InvalidAudioError, AudioTooComplexError, InvalidRequestError,
        OverloadedError where disk, memory or CPU time run short, and ServiceUnavailableError where
        files cannot be decoded at the moment.
        """
        on_stage(Stage(stage="decoding"))
        started = time.monotonic()
        await self._cores.acquire()
        job = Job(self._max_audio_s, track, channel, fetched.remote)
        decoded = await self._decode(fetched.file, job)
        return Waveform(decoded, fetched.download_s, time.monotonic() - started)

    async def _decode(self, file: BinaryIO, job: Job) -> DecodedAudio:
        try:
            # A decoder may outlive a call that is cancelled, and needs its core until it ends.
            return await self._sandbox.decode(file, job, self._cores.release)
        except DecoderDiedError as error:
            count_decoder_death(error.reason)
            logger.warning(
                "event=decoder_died signal=%s sha256=%s", error.reason, error.sha256
            )
            if isinstance(error, DecoderStarvedError):
                raise OverloadedError(
                    "The service lacks the memory or the CPU time to decode the file at the"
                    " moment: try again later"
                ) from None
            if error.reason in _TOO_LONG:
                raise AudioTooComplexError(TOO_COMPLEX) from None
            raise InvalidAudioError(
                "the file makes the decoder fail: it is damaged."
                " Convert it to WAV or FLAC and send that"
            ) from None
        except DecoderFailedError as error:
            logger.error(
                "event=decoder_failed error=%s sha256=%s", error.where, error.sha256
            )
            raise
        except DecoderLostError:
            raise ServiceUnavailableError(
                "Files cannot be decoded at the moment; try again"
            ) from None
