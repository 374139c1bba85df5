"""The ingress behind every door: validate, fetch, decode, dispatch by model, and turn errors into answers.

A plain class; `app.py` makes a deployment of it and `http_api.py` adds the HTTP routes.
"""

import asyncio
import contextvars
import logging
import re
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import checkpoints
from deployments.audio.decode import SAMPLE_RATE, decode_audio
from deployments.audio.download import FetchLimits, fetch_audio
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import WhisperServeError
from deployments.contract.schema import (
    TranscriptionRequest,
    check_fits_model,
    parse_request,
    unknown_model,
)
from deployments.logs import log_through_serve, place_of
from deployments.router.model_client import ModelClient

logger = logging.getLogger(__name__)

APPLICATION = "whisper"
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


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
        # Enough for all that are admitted: slow hosts behind one model's URLs do not stop another model.
        self._threads = ThreadPoolExecutor(
            sum(client.at_once for client in self._clients.values()),
            thread_name_prefix="fetch",
        )
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
            job = await asyncio.to_thread(self._parse, request, event)
            del request  # may hold 43 MB of base64
            async with self._audio_of(job, event) as audio:
                answer = await job.client.transcribe(audio.samples, job.request)
                return _complete(answer, audio, event)

    async def stream(
        self,
        request: dict[str, Any],
        request_id: str | None = None,
        segments: bool = True,
    ) -> AsyncIterator[dict[str, Any]]:
        """Events of one transcription: `progress` (seconds done and in total), `segment` (final ones, in
        order), and last `result`, which holds what `transcribe` returns.

        segments: whether they are wanted; without them a request whose replica dies is tried once more

        Raises a WhisperServeError, whose text is fit for the caller.
        """
        with _answered(request_id) as event:
            job = await asyncio.to_thread(self._parse, request, event)
            del request
            async with (
                self._audio_of(job, event) as audio,
                aclosing(
                    job.client.stream(audio.samples, job.request, segments)
                ) as items,
            ):
                async for item in items:
                    if item["event"] == "result":
                        result = _complete(item["result"], audio, event)
                        item = {"event": "result", "result": result}
                    yield item

    async def models(self) -> list[dict[str, Any]]:
        """The served models: what is known of each, whether its weights are at hand (on this machine),
        whether a replica is up, and how many of its slots are in use.
        """
        running = await asyncio.to_thread(_running_replicas)
        described = (
            self._describe(model, running.get(model.deployment, 0))
            for model in self._args.models
        )
        return await asyncio.gather(*described)

    async def health(self) -> dict[str, str]:
        """That this application is up, and which one it is."""
        return {
            "application": APPLICATION,
            "status": "ok",
            "default_model": self._args.default_model,
        }

    def _parse(self, payload: dict[str, Any], event: "_Event") -> "_Job":
        """Everything that can be refused before anything is fetched."""
        request = parse_request(payload)
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
        return _Job(
            request.without_audio(), self._clients[model.name], _source_of(request)
        )

    @asynccontextmanager
    async def _audio_of(self, job: "_Job", event: "_Event") -> AsyncIterator[_Audio]:
        """The job's waveform, with one of the model's places for as long as it is in memory."""
        waiting = time.monotonic()
        async with job.client.admitted():
            event.queue_s = time.monotonic() - waiting
            gone = threading.Event()
            # In this request's context, for the request id that Serve puts into log lines.
            load = partial(contextvars.copy_context().run, self._load_audio, job, gone)
            try:
                yield await asyncio.get_running_loop().run_in_executor(
                    self._threads, load
                )
            finally:
                gone.set()

    def _load_audio(self, job: "_Job", gone: threading.Event) -> _Audio:
        started = time.monotonic()
        with ExitStack() as stack:
            source = job.source
            file = stack.enter_context(
                fetch_audio(source, self._fetch_limits, gone.is_set)
                if isinstance(source, str)
                else source
            )
            fetched = time.monotonic()
            samples = decode_audio(file, self._args.max_audio_s, gone.is_set)
        return _Audio(samples, fetched - started, time.monotonic() - fetched)

    async def _describe(self, model: ModelArgs, replicas: int) -> dict[str, Any]:
        official = model.official
        at_hand = await asyncio.to_thread(
            checkpoints.find, model.name, model.checkpoint
        )
        slots = await self._clients[model.name].slots(replicas) or {}
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
            "weights_at_hand": at_hand is not None,
            "replica_up": replicas > 0,
            "slots": slots.get("slots"),
            "slots_in_use": slots.get("slots_in_use"),
            "windows_waiting": slots.get("windows_waiting"),
        }


@dataclass(frozen=True)
class _Job:
    """A valid request. source: a URL, or the file that came inside the request."""

    request: TranscriptionRequest
    client: ModelClient
    source: str | BinaryIO


def _source_of(request: TranscriptionRequest) -> str | BinaryIO:
    if request.audio is not None:
        return request.audio.strip()
    # On disk: many such requests may wait.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the job's
    file.write(request.audio_bytes())
    file.seek(0)
    return file


@dataclass
class _Event:
    """What the log tells of one request."""

    request_id: str
    model: str = "-"
    duration_s: float = 0.0
    queue_s: float = 0.0
    batch: float = 0.0


@contextmanager
def _answered(request_id: str | None) -> Iterator[_Event]:
    """The one place that turns errors into answers, and logs each request in one line."""
    # A caller's own id goes into the log: only what fits into a line there.
    own = request_id if _REQUEST_ID.fullmatch(request_id or "") else None
    event = _Event(own or uuid.uuid4().hex)
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
        status, level = 500, logging.ERROR
        reason = f"{type(error).__name__}@{place_of(error)}"
        raise WhisperServeError("Internal error; the log names it") from None
    finally:
        logger.log(
            level,
            "request_id=%s model=%s status=%d reason=%s duration=%.2f seconds=%.3f"
            " queue=%.3f batch=%.1f",
            event.request_id,
            event.model,
            status,
            reason,
            event.duration_s,
            time.monotonic() - started,
            event.queue_s,
            event.batch,
        )


def _complete(answer: dict[str, Any], audio: _Audio, event: _Event) -> dict[str, Any]:
    event.duration_s = audio.duration_s
    timings = answer["timings"]
    event.queue_s += timings["queue"]
    event.batch = timings["batch"]
    answer["timings"] = {
        "download": audio.download_s,
        "decode": audio.decode_s,
        "model_start": timings["model_start"],
        "queue": event.queue_s,
        "transcribe": timings["transcribe"],
        "batch": event.batch,
    }
    return answer | {"duration": audio.duration_s, "request_id": event.request_id}


def _running_replicas() -> dict[str, int]:
    """By deployment."""
    application = serve.get_replica_context().app_name
    deployments = serve.status().applications[application].deployments
    return {
        name: sum(
            count
            for state, count in deployment.replica_states.items()
            if state == "RUNNING"
        )
        for name, deployment in deployments.items()
    }
