"""The Router: one path for the requests of every door.

A plain class that needs no Ray: `app.py` makes a deployment of it, and `api.build` its HTTP routes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import checkpoints
from deployments.audio.spool import Spool
from deployments.config import AppArgs, ModelArgs
from deployments.contract.answer import (
    Answer,
    Event,
    Health,
    Result,
    ServedModel,
    Timings,
)
from deployments.contract.options import TranscriptionOptions
from deployments.contract.request import parse_request, parse_upload
from deployments.logs import log_through_serve
from deployments.replica.shared_audio import SharedAudio
from deployments.replica.transcript import Transcript
from deployments.router.audio_source import AudioSource, source_of
from deployments.router.decoding import Decoder, Waveform
from deployments.router.fetching import Fetcher
from deployments.router.in_flight import DrainState, InFlight
from deployments.router.model_client import ModelClient, ShareAudio
from deployments.router.request_log import RequestLog, logged_request
from deployments.router.result import answer_of
from deployments.router.stages import OnStage, ignore_stage, with_stages

logger = logging.getLogger(__name__)


class Router:
    """Validates, downloads, decodes, dispatches by model, and answers errors.

    `events` is the one path. Its last event is the result, which is all that `answer` gives.
    `stream` and `transcribe` are the same as plain dicts, for callers of a Serve handle.

    handles: by model name, what Serve made of the bound model deployments
    gpu_shares: by model name, the share of one GPU that a replica asks for; 0 where there is none
    running_replicas: gives how many replicas run, by deployment name
    share_audio: makes a waveform available to replicas
    application: the Serve application's name, for GET /health
    decoder: decodes the files; None: one of its own

    in_flight: the requests in work. HTTP counts its own there, from their first byte to their last.
    spool: the files of all requests, as they came
    """

    def __init__(
        self,
        args: AppArgs,
        handles: Mapping[str, DeploymentHandle[Any]],
        gpu_shares: Mapping[str, float],
        running_replicas: Callable[[], Mapping[str, int]] | None = None,
        share_audio: ShareAudio = SharedAudio.put,
        application: str = "whisper",
        decoder: Decoder | None = None,
    ) -> None:
        log_through_serve()
        self._configured = self._args = args
        self._application = application
        self._running_replicas = running_replicas or _running_replicas
        self.in_flight = InFlight()
        self._clients = {
            model.name: ModelClient(
                model,
                handles[model.name],
                args,
                gpu_shares[model.name],
                share_audio,
                stopping=lambda: self.in_flight.draining,
            )
            for model in args.models
        }
        self.spool = Spool(args.max_spool_bytes)
        self._fetcher = Fetcher(args, self.spool)
        self._decoder = decoder or Decoder(args)
        self._limits_taken = False

    def reconfigure(self, limits: Mapping[str, Any]) -> None:
        """Called by Serve with the deployment's `user_config`: at the start and at each change.

        limits: by option, in place of those in the arguments; see `AppArgs.with_limits`

        Raises ValueError at the start where they are wrong. A Router that runs keeps the limits it
        has, because Serve would otherwise kill it with all of its requests.
        """
        try:
            args = self._configured.with_limits(limits)
        except ValueError as error:
            if not self._limits_taken:
                raise
            logger.error("event=limits_refused reason=%s", error)
            return
        self._limits_taken = True
        changed = args != self._args
        self._args = args
        for client in self._clients.values():
            client.set_limits(args)
        self._fetcher.set_limits(args)
        self._fetcher.log_exceptions()
        self._decoder.set_limits(args)
        if changed:
            logger.warning(
                "event=limits_changed names=%s", ",".join(sorted(limits)) or "-"
            )

    def start(self) -> None:
        """Start now what the first request would otherwise wait for."""
        self._decoder.start()

    @property
    def args(self) -> AppArgs:
        """The arguments, with the limits that hold now."""
        return self._args

    async def events(
        self,
        request: Mapping[str, Any],
        request_id: str | None = None,
        segments: bool = True,
        progress: bool = True,
        upload: BinaryIO | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of one transcription; the result comes last.

        request: of the contract, as it came through a door
        request_id: for the log and the answer; None: a new one
        segments, progress: whether these events are wanted, and stages with the progress; a request
            whose replica dies is tried once more, but not after a segment has gone out
        upload: the audio, where it came beside the request; nothing reads it any more when the
            events have ended or are closed

        Where stages are wanted, the first one comes before any work, and what is wrong with the
        request itself is raised in place of it.

        Raises a WhisperServeError, whose text is fit for the caller.
        """
        with logged_request(request_id) as entry:
            job = await asyncio.to_thread(self._parse, request, upload, entry)
            del request  # It may hold 43 MB of base64.
            work = partial(self._work, job, entry, segments, progress)
            staged = with_stages(work) if progress else work(ignore_stage)
            async with aclosing(self.in_flight.until_ended(staged)) as events:
                async for event in events:
                    yield event

    async def answer(
        self,
        request: Mapping[str, Any],
        request_id: str | None = None,
        upload: BinaryIO | None = None,
    ) -> Answer:
        """The result of one transcription; arguments and errors are those of `events`."""
        events = self.events(
            request, request_id, segments=False, progress=False, upload=upload
        )
        del request
        return await answer_of(events)

    async def stream(
        self,
        request: Mapping[str, Any],
        request_id: str | None = None,
        segments: bool = True,
    ) -> AsyncIterator[dict[str, Any]]:
        """`events` as plain dicts. Refused during a drain, as `transcribe` is."""
        self.in_flight.check_accepting()
        events = self.events(request, request_id, segments)
        del request
        with self.in_flight.request():
            async with aclosing(events):
                async for event in events:
                    yield event.model_dump()

    async def transcribe(
        self, request: Mapping[str, Any], request_id: str | None = None
    ) -> dict[str, Any]:
        """`answer` as a plain dict."""
        self.in_flight.check_accepting()
        answer = self.answer(request, request_id)
        del request
        with self.in_flight.request():
            return (await answer).model_dump()

    async def models(self) -> list[dict[str, Any]]:
        """The served models, as dicts of `ServedModel`."""
        running = await asyncio.to_thread(self._running_replicas)
        described = (
            self._describe(model, running.get(model.deployment, 0))
            for model in self._args.models
        )
        return [model.model_dump() for model in await asyncio.gather(*described)]

    async def ready(self) -> bool:
        """Whether requests should come here: the default model is loaded, and no drain has begun.

        Where the default model may stop when idle, it is not asked, because it starts when needed.
        """
        if self.in_flight.draining:
            return False
        model = self._args.model(self._args.default_model)
        if not self._args.min_replicas(model):
            return True
        return await self._clients[model.name].loaded()

    async def drain(self) -> DrainState:
        """Take no new requests from now on; gives how far those in work are. Call it until none is.

        Those that are in work after `drain_timeout_s` end with ServiceUnavailableError. Callers of
        `events` and `answer` count their requests themselves, and are not refused.
        """
        return self.in_flight.drain(self._args.drain_timeout_s)

    async def health(self) -> dict[str, Any]:
        """A dict of `Health`."""
        default = self._args.default_model
        health = Health(application=self._application, default_model=default)
        return health.model_dump()

    async def _work(
        self,
        job: "_Job",
        entry: RequestLog,
        segments: bool,
        progress: bool,
        on_stage: OnStage,
    ) -> AsyncGenerator[Event, None]:
        async with (
            self._waveform_of(job, entry, on_stage) as audio,
            aclosing(
                job.client.stream(
                    audio.samples, job.options, segments, progress, on_stage
                )
            ) as events,
        ):
            async for event in events:
                if isinstance(event, Transcript):
                    yield Result(result=_answer(event, audio, entry))
                else:
                    yield event

    def _parse(
        self, payload: Mapping[str, Any], upload: BinaryIO | None, entry: RequestLog
    ) -> "_Job":
        """Refuse, before anything is downloaded, all that can be refused by then."""
        request = parse_request(payload) if upload is None else parse_upload(payload)
        model = self._args.model(request.model or self._args.default_model)
        entry.model = model.name
        options = request.options
        self._args.check_fits(options, model)
        source = source_of(request, upload, self.spool)
        self._fetcher.check(source)
        return _Job(
            options,
            self._clients[model.name],
            source,
            request.audio_track,
            request.audio_channel,
        )

    @asynccontextmanager
    async def _waveform_of(
        self, job: "_Job", entry: RequestLog, on_stage: OnStage
    ) -> AsyncIterator[Waveform]:
        """The job's audio, with one of the model's places for as long as the block runs."""
        admission = job.client.admission
        with admission.request(entry.key) as ticket:
            async with self._fetcher.fetched(job.source, on_stage) as fetched:
                # All waits of a request have one limit together.
                ticket.waited_s = fetched.waited_s
                async with admission.decoding_turn(ticket, on_stage):
                    audio = await self._decoder.decode(
                        fetched, job.track, job.channel, on_stage
                    )
                    admission.decoded(ticket, audio.duration_s)
            async with admission.place(ticket, on_stage):
                entry.queue_s = ticket.waited_s
                yield audio

    async def _describe(self, model: ModelArgs, replicas: int) -> ServedModel:
        official = model.official
        cached = await asyncio.to_thread(checkpoints.find, model.name, model.checkpoint)
        slots = await self._clients[model.name].slots(replicas)
        return ServedModel(
            name=model.name,
            aliases=self._args.aliases(model),
            default=model.name == self._args.default_model,
            parameters=official.parameters_m * 1_000_000 if official else None,
            multilingual=official.multilingual if official else None,
            weights_cached=cached is not None,
            running_replicas=replicas,
            slots=slots and slots.slots,
            slots_in_use=slots and slots.slots_in_use,
            windows_waiting=slots and slots.windows_waiting,
        )


@dataclass(frozen=True)
class _Job:
    """A valid request, on its way to a model."""

    options: TranscriptionOptions
    client: ModelClient
    source: AudioSource
    track: int | str | None
    channel: int | None


def _answer(transcript: Transcript, audio: Waveform, entry: RequestLog) -> Answer:
    entry.duration_s = audio.duration_s
    entry.queue_s += transcript.queue_s
    entry.batch_windows = transcript.batch_windows
    return Answer(
        segments=transcript.segments,
        word_timestamps=transcript.words,
        chunks=transcript.chunks,
        detected_language=transcript.language,
        language_probability=transcript.language_probability,
        transcription=transcript.text,
        device=transcript.device,
        model=entry.model,
        duration=audio.duration_s,
        audio_start=audio.decoded.start_s,
        timings=Timings(
            download=audio.download_s,
            decode=audio.decode_s,
            model_start=transcript.model_start_s,
            queue=entry.queue_s,
            transcribe=transcript.transcribe_s,
        ),
        batch_windows=transcript.batch_windows,
        warnings=[*audio.decoded.warnings, *transcript.warnings],
        request_id=entry.request_id,
    )


def _running_replicas() -> dict[str, int]:
    """By deployment name, as Serve tells its own replica; see `removal` for when it tells none."""
    name = serve.get_replica_context().app_name
    application = serve.status().applications.get(name)
    deployments = application.deployments if application else {}
    return {
        name: sum(
            count
            for state, count in deployment.replica_states.items()
            if state == "RUNNING"
        )
        for name, deployment in deployments.items()
    }
