"""A long recording whole and in chunks that decode together, and short ones beside its chunks."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from whisper.audio import HOP_LENGTH
from whisper.model import ModelDimensions, Whisper

from benchmarks.gpu import chunked_recording, models
from benchmarks.gpu.audio import Recording
from benchmarks.gpu.chunked_recording import ChunkedRecording
from benchmarks.gpu.phases import end_to_end
from benchmarks.gpu.phases.speech import base_options
from benchmarks.gpu.requests import Result, serve
from benchmarks.gpu.run import Run
from deployments.engine import Engine, TranscriptionCancelled, Usage, own_process
from deployments.replica.chunked import transcribe_chunks
from deployments.replica.slot_shares import SlotShares

# Models with random weights.
MODELS = ("turbo",)
_BEAMS = 5
_SHORT = 8
# How long the chunks are in work when the short recordings come.
_BEFORE_S = 2
# How many chunks are compared with their pieces alone.
_COMPARED = 4


def measure(run: Run) -> None:
    recording, speech = chunked_recording.read(run.pack)
    if run.tiny:
        recording = recording.beginning(3)
    short = [speech[number % len(speech)] for number in range(_SHORT)]
    model, _ = models.base(run.weights, run.device)
    options = {"beam_size": _BEAMS} | base_options(run)
    own_process()
    with Engine(model) as engine:
        _both_ways(run, "base", engine, recording, options)
        work = partial(_beside, run, engine, recording, short, options)
        run.attempt("short recordings", work, 8)
    engine.join(10)
    run.attempt("pieces", partial(_pieces, run, model, recording, options), 5)
    for name, dims in models.measured(run, MODELS):
        run.attempt(name, partial(_random, run, name, dims, recording), 20)


def _random(
    run: Run, name: str, dims: ModelDimensions, recording: ChunkedRecording
) -> None:
    model = models.random_model(dims, run.device)
    steps = 3 if run.tiny else end_to_end.STEPS
    options = end_to_end.OPTIONS | {"beam_size": _BEAMS, "sample_len": steps}
    with Engine(model) as engine:
        del model
        run.empty_cache()
        _both_ways(run, name, engine, recording, options)
    engine.join(10)


def _both_ways(
    run: Run,
    name: str,
    engine: Engine,
    recording: ChunkedRecording,
    options: dict[str, Any],
) -> None:
    chunked = partial(_chunked, engine, SlotShares(), recording, options)
    whole = partial(_whole, engine, recording, options)
    # The first call of each kind loads kernels and is not timed.
    run.attempt(f"{name}, first chunks", chunked, 5)
    first_chunk = recording.beginning(1)
    run.attempt(f"{name}, first", partial(_whole, engine, first_chunk, options), 5)
    for way, work in (("chunks", chunked), ("whole", whole)):
        timed = partial(_timed, run, name, way, recording, work)
        run.attempt(f"{name}, {way}", timed, 5)


def _timed(
    run: Run,
    name: str,
    way: str,
    recording: ChunkedRecording,
    work: Callable[[], tuple[Result, Usage]],
) -> None:
    if run.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    _, usage = work()
    seconds = time.perf_counter() - started
    run.report(
        "long recording",
        model=name,
        beams=_BEAMS,
        way=way,
        chunks=len(recording.spans) if way == "chunks" else 1,
        audio_s=recording.seconds,
        seconds=seconds,
        times_real_time=recording.seconds / seconds,
        windows=usage.windows,
        steps=usage.steps,
        occupancy=usage.occupancy,
        peak_bytes=torch.cuda.max_memory_reserved() if run.on_gpu else None,
    )


def _whole(
    engine: Engine, recording: ChunkedRecording, options: dict[str, Any]
) -> tuple[Result, Usage]:
    usages: list[Usage] = []
    result = engine.transcribe(recording.pcm, on_usage=usages.append, **options)
    return result, usages[0]


def _chunked(
    engine: Engine,
    shares: SlotShares,
    recording: ChunkedRecording,
    options: dict[str, Any],
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Result, Usage]:
    with shares.chunked(engine.stats().slots) as share:
        return transcribe_chunks(
            engine.transcribe,
            engine.detect_language,
            recording.pcm,
            recording.spans,
            share,
            cancelled=cancelled,
            **({"language": None} | options),
        )


def _beside(
    run: Run,
    engine: Engine,
    recording: ChunkedRecording,
    short: Sequence[Recording],
    options: dict[str, Any],
) -> None:
    """Time short recordings that come at once: alone, then while chunks are in work."""
    shares, over = SlotShares(), threading.Event()
    come = partial(serve, engine, short, len(short), shares, **options)

    def report(beside: str, in_work: int) -> None:
        served = come()
        worst = max(served.latencies)
        about = {"beside": beside, "slots_in_use": in_work, "worst_s": worst}
        run.report("short recordings", **about, **served.figures())

    def keep_in_work() -> None:
        # One time through the recording may be over before the short ones come.
        with contextlib.suppress(TranscriptionCancelled):
            while not over.is_set():
                _chunked(engine, shares, recording, options, over.is_set)

    come()
    report("nothing", 0)
    with ThreadPoolExecutor(1) as background:
        chunks = background.submit(keep_in_work)
        try:
            time.sleep(0.1 if run.tiny else _BEFORE_S)
            report("chunks", engine.stats().slots_in_use)
        finally:
            over.set()
        chunks.result()


def _pieces(
    run: Run, model: Whisper, recording: ChunkedRecording, options: dict[str, Any]
) -> None:
    """Compare the tokens of chunks in fp32 with those of the same pieces alone."""
    torch.backends.cudnn.allow_tf32 = False
    few = recording.beginning(_COMPARED)
    equal = 0
    with Engine(model, dtype=torch.float32) as engine:
        result, _ = _chunked(engine, SlotShares(), few, options)
        for span in few.spans:
            piece = few.pcm[span.start : span.end]
            alone = engine.transcribe(piece, language=result["language"], **options)
            in_chunks = [
                segment["tokens"]
                for segment in result["segments"]
                if span.start <= segment["seek"] * HOP_LENGTH < span.end
            ]
            equal += in_chunks == [segment["tokens"] for segment in alone["segments"]]
    run.report("pieces", compared=len(few.spans), equal=equal)
