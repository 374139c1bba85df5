"""The ingress behind every door: validate, fetch, decode, dispatch by model, and turn errors into answers.

A plain class; `app.py` makes a deployment of it and `http_api.py` adds the HTTP routes.
"""

import asyncio
import io
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import checkpoints
from deployments.audio import SAMPLE_RATE, decode_audio
from deployments.config import AppArgs, ModelArgs
from deployments.dispatch import ModelClient
from deployments.errors import WhisperServeError
from deployments.fetch import FetchLimits, fetch_audio
from deployments.logs import log_through_serve
from deployments.schema import (
    TranscriptionRequest,
    check_fits_model,
    parse_request,
    unknown_model,
)

logger = logging.getLogger(__name__)

APPLICATION = "whisper"
_FETCH_THREADS = 64


@dataclass(frozen=True)
class _Audio:
    samples: np.ndarray  # int16 at 16 kHz, shape (samples,)
    download_s: float
    decode_s: float

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE


class Router:
    """Takes and returns plain dicts of the contract.

    handles: by model name, what Serve made of the bound model deployments
    gpu_shares: by model name, what a replica asks of one GPU; 0 where there is none
    """

    def __init__(
        self,
        args: AppArgs,
        handles: dict[str, DeploymentHandle[Any]],
        gpu_shares: dict[str, float],
    ) -> None:
        log_through_serve()
        self._args = args
        self._clients = {
            model.name: ModelClient(
                model, handles[model.name], args, gpu_shares[model.name]
            )
            for model in args.models
        }
        self._threads = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")
        self._fetch_limits = FetchLimits(
            max_bytes=args.max_download_bytes,
            connect_timeout_s=args.connect_timeout_s,
            read_timeout_s=args.read_timeout_s,
            total_timeout_s=args.download_timeout_s,
        )

    async def transcribe(
        self, request: dict[str, Any], request_id: str | None = None
    ) -> dict[str, Any]:
        """Transcribe one recording.

        Raises a WhisperServeError, whose text is fit for the caller.
        """
        with _answered(request_id) as event:
            parsed, client = await self._parse(request, event)
            async with self._audio_of(parsed, client, event) as audio:
                answer = await client.transcribe(audio.samples, parsed)
                return _complete(answer, audio, event)

    async def stream(
        self, request: dict[str, Any], request_id: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Events of one transcription: `progress` (seconds done and in total), `segment` (final ones, in
        order), and last `result`, which holds what `transcribe` returns.

        Raises a WhisperServeError, whose text is fit for the caller.
        """
        with _answered(request_id) as event:
            parsed, client = await self._parse(request, event)
            async with (
                self._audio_of(parsed, client, event) as audio,
                aclosing(client.stream(audio.samples, parsed)) as items,
            ):
                async for item in items:
                    if item["event"] == "result":
                        result = _complete(item["result"], audio, event)
                        item = {"event": "result", "result": result}
                    yield item

    async def models(self) -> list[dict[str, Any]]:
        """The served models: what is known of each, whether its weights are at hand (on this machine) and
        whether a replica is up.
        """
        running = await asyncio.to_thread(_running_deployments)
        return [self._describe(model, running) for model in self._args.models]

    async def health(self) -> dict[str, str]:
        """That this application is up, and which one it is."""
        return {
            "application": APPLICATION,
            "status": "ok",
            "default_model": self._args.default_model,
        }

    async def _parse(
        self, payload: dict[str, Any], event: "_Event"
    ) -> tuple[TranscriptionRequest, ModelClient]:
        # In a thread, because a payload may hold 43 MB of base64.
        request = await asyncio.to_thread(parse_request, payload)
        name = request.model or self._args.default_model
        model = self._args.find_model(name)
        if model is None:
            raise unknown_model(name, self._args.valid_names())
        event.model = model.name
        if official := model.official:
            check_fits_model(
                request,
                model=model.name,
                multilingual=official.multilingual,
                num_languages=official.num_languages,
                n_vocab=official.n_vocab,
            )
        return request, self._clients[model.name]

    @asynccontextmanager
    async def _audio_of(
        self, request: TranscriptionRequest, client: ModelClient, event: "_Event"
    ) -> AsyncIterator[_Audio]:
        """The request's waveform, with one of the model's places for as long as it is in memory."""
        waiting = time.monotonic()
        async with client.admitted():
            event.admission_s = time.monotonic() - waiting
            gone = threading.Event()
            load = partial(self._load_audio, request, gone)
            try:
                yield await asyncio.get_running_loop().run_in_executor(
                    self._threads, load
                )
            finally:
                gone.set()

    def _load_audio(
        self, request: TranscriptionRequest, gone: threading.Event
    ) -> _Audio:
        started = time.monotonic()
        if request.audio is None:
            with io.BytesIO(request.audio_bytes()) as file:
                return self._decode(file, started, gone)
        with fetch_audio(
            request.audio.strip(), self._fetch_limits, gone.is_set
        ) as file:
            return self._decode(file, started, gone)

    def _decode(self, file: Any, started: float, gone: threading.Event) -> _Audio:
        fetched = time.monotonic()
        samples = decode_audio(file, self._args.max_audio_s, gone.is_set)
        return _Audio(samples, fetched - started, time.monotonic() - fetched)

    def _describe(self, model: ModelArgs, running: set[str]) -> dict[str, Any]:
        official = model.official
        at_hand = checkpoints.find(model.name, model.checkpoint) is not None
        return {
            "name": model.name,
            "aliases": [
                name
                for name in self._args.valid_names()
                if name != model.name and self._args.find_model(name) == model
            ],
            "default": model.name == self._args.default_model,
            "parameters": official.parameters_m * 1_000_000 if official else None,
            "multilingual": official.multilingual if official else None,
            "weights_at_hand": at_hand,
            "replica_up": model.deployment in running,
        }


@dataclass
class _Event:
    """What the log tells of one request."""

    request_id: str
    model: str = "-"
    duration_s: float = 0.0
    admission_s: float = 0.0


@contextmanager
def _answered(request_id: str | None) -> Iterator[_Event]:
    """The one place that turns errors into answers, and logs each request in one line."""
    event = _Event(request_id or uuid.uuid4().hex)
    started = time.monotonic()
    status, level, reason = 200, logging.INFO, "ok"
    try:
        yield event
    except WhisperServeError as error:
        status, reason = error.status, error.type
        level = logging.WARNING if status >= 500 else logging.INFO
        raise
    except (asyncio.CancelledError, GeneratorExit):
        status, reason = 499, "cancelled"
        raise
    except Exception as error:  # noqa: BLE001 - its text is not for the caller
        status, level, reason = 500, logging.ERROR, type(error).__name__
        raise WhisperServeError("Internal error; the log names it") from None
    finally:
        logger.log(
            level,
            "request_id=%s model=%s status=%d reason=%s duration=%.2f seconds=%.3f",
            event.request_id,
            event.model,
            status,
            reason,
            event.duration_s,
            time.monotonic() - started,
        )


def _complete(answer: dict[str, Any], audio: _Audio, event: _Event) -> dict[str, Any]:
    event.duration_s = audio.duration_s
    timings = answer["timings"]
    answer["timings"] = {
        "download": audio.download_s,
        "decode": audio.decode_s,
        "model_start": timings["model_start"],
        "queue": event.admission_s + timings["queue"],
        "transcribe": timings["transcribe"],
    }
    return answer | {"duration": audio.duration_s, "request_id": event.request_id}


def _running_deployments() -> set[str]:
    name = serve.get_replica_context().app_name
    deployments = serve.status().applications[name].deployments
    return {
        name
        for name, deployment in deployments.items()
        if any(
            state == "RUNNING" and count
            for state, count in deployment.replica_states.items()
        )
    }
