"""Real speech with base's own weights: the engine with 32, 8 and 1 at once, and official code."""

import sys
import time
from functools import partial
from typing import Any

import torch
import whisper
from whisper.model import Whisper

from benchmarks.gpu import models
from benchmarks.gpu.audio import Recording, recordings
from benchmarks.gpu.requests import Result, serve
from benchmarks.gpu.run import Run
from deployments.engine import Engine, own_process

_CASES: dict[str, dict[str, Any]] = {
    "beam 5": {"beam_size": 5},
    "greedy": {"beam_size": None},
    "beam 5, words": {"beam_size": 5, "word_timestamps": True},
}
# How many requests each of the concurrent callers sends.
_ROUNDS = {1: 12, 8: 4, 32: 4}
# Official code stops after this time in each case.
_OFFICIAL_S = 8


def measure(run: Run) -> None:
    model, source = models.base(run.weights, run.device)
    run.report("weights", source=source)
    spoken = recordings(run.pack)
    cases = {case: base_options(run) | options for case, options in _CASES.items()}
    ours: dict[str, dict[str, Result]] = {}
    own_process()
    at_once = [2, 1] if run.tiny else [32, 8, 1]
    with Engine(model) as engine:
        # The first call of each kind loads kernels and is not timed.
        for case, options in cases.items():
            run.attempt(case, partial(serve, engine, spoken[:1], 1, **options))
        for number in at_once:
            for case, options in cases.items():
                work = partial(
                    _engine, run, engine, spoken, number, case, options, ours
                )
                run.attempt(f"{case}, {number} at once", work, 4)
        intervals = partial(_switch_intervals, run, engine, spoken, at_once[0])
        run.attempt("switch interval", intervals, 6)
    for case, options in cases.items():
        work = partial(_official, run, model, spoken, case, options, ours.get(case, {}))
        run.attempt(f"official, {case}", work, 4)


def base_options(run: Run) -> dict[str, Any]:
    """Options with one temperature, and with few tokens a window in a tiny run."""
    brief: dict[str, Any] = {"sample_len": 6} if run.tiny else {}
    return {"temperature": 0.0} | brief


def _engine(
    run: Run,
    engine: Engine,
    spoken: list[Recording],
    at_once: int,
    case: str,
    options: dict[str, Any],
    ours: dict[str, dict[str, Result]],
) -> None:
    """Keep the results in `ours`, by case and recording."""
    count = at_once if run.tiny else at_once * _ROUNDS[at_once]
    asked = [spoken[number % len(spoken)] for number in range(count)]
    served = serve(engine, asked, at_once, **options)
    names = [recording.name for recording in asked]
    ours.setdefault(case, {}).update(zip(names, served.results, strict=True))
    run.report("engine", model="base", case=case, at_once=at_once, **served.figures())


def _official(
    run: Run,
    model: Whisper,
    spoken: list[Recording],
    case: str,
    options: dict[str, Any],
    ours: dict[str, Result],
) -> None:
    """Time official code with and without cuDNN, which makes a plan for every length."""
    for cudnn in (False, True) if run.on_gpu and case == "beam 5" else (False,):
        if run.on_gpu:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        transcribe = partial(whisper.transcribe, model, fp16=run.on_gpu, **options)
        # The first call loads kernels and is not timed.
        transcribe(spoken[0].wave)
        results: dict[str, Result] = {}
        seconds = audio = 0.0
        for recording in spoken[: 1 if run.tiny else None]:
            started = time.perf_counter()
            results[recording.name] = transcribe(recording.wave)
            seconds += time.perf_counter() - started
            audio += recording.seconds
            if seconds > _OFFICIAL_S or run.seconds_left < 2:
                break
        run.report(
            "official",
            model="base",
            case=case,
            cudnn_attention=cudnn,
            requests=len(results),
            audio_s=audio,
            seconds=seconds,
            times_real_time=audio / seconds,
        )
        if not cudnn:
            both = [name for name in results if name in ours]
            equal = [ours[name]["text"] == results[name]["text"] for name in both]
            run.report("texts", case=case, compared=len(equal), equal=sum(equal))


def _switch_intervals(
    run: Run, engine: Engine, spoken: list[Recording], at_once: int
) -> None:
    """Compare Python's default switch interval with the engine's, in turn."""
    count = at_once if run.tiny else 2 * at_once
    asked = [spoken[number % len(spoken)] for number in range(count)]
    ours = sys.getswitchinterval()
    try:
        for interval in (0.005, ours, 0.005, ours):
            sys.setswitchinterval(interval)
            served = serve(engine, asked, at_once, beam_size=5, **base_options(run))
            run.report(
                "switch interval",
                interval_s=interval,
                at_once=at_once,
                times_real_time=served.audio_seconds / served.seconds,
            )
    finally:
        sys.setswitchinterval(ours)
