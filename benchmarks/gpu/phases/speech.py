"""Real speech with base's own weights: official code one request after the other, the engine with 1, 8 and 32 at once."""

import sys
import time
from typing import Any

import whisper
from whisper.model import Whisper

from benchmarks.gpu import models
from benchmarks.gpu.audio import Recording, recordings
from benchmarks.gpu.requests import Result, serve, watched_gpu
from benchmarks.gpu.run import OutOfTimeError, Run
from deployments.engine import Engine, own_process

_CASES: dict[str, dict[str, Any]] = {
    "beam 5": {"beam_size": 5},
    "greedy": {"beam_size": None},
    "beam 5, words": {"beam_size": 5, "word_timestamps": True},
}
# How many requests each of the concurrent callers sends.
_ROUNDS = {1: 12, 8: 4, 32: 4}
# Official code stops after this time in each case.
_OFFICIAL_S = 12


def measure(run: Run) -> None:
    model = models.base(run.weights, run.device)
    spoken = recordings(run.pack)
    cases = {case: base_options(run) | options for case, options in _CASES.items()}
    expected = {
        case: _official(run, model, spoken, case, options)
        for case, options in cases.items()
    }
    own_process()
    at_once = [1, 2] if run.tiny else [32, 8, 1]
    with Engine(model) as engine:
        serve(engine, spoken[:1], 1, **cases["beam 5, words"])
        for number in at_once:
            for case, options in cases.items():
                run.need(4)
                _engine(run, engine, spoken, number, case, options, expected[case])
        _switch_interval(run, engine, spoken, at_once[0])


def base_options(run: Run) -> dict[str, Any]:
    """One temperature, and a few tokens a window in a tiny run."""
    brief: dict[str, Any] = {"sample_len": 6} if run.tiny else {}
    return {"temperature": 0.0} | brief


def _official(
    run: Run,
    model: Whisper,
    spoken: list[Recording],
    case: str,
    options: dict[str, Any],
) -> dict[str, Result]:
    """Official results by the recording's name, for as many recordings as there is time for."""
    fp16 = run.on_gpu
    # The first call loads kernels and is not timed.
    whisper.transcribe(model, spoken[0].wave, fp16=fp16, **options)
    run.synchronize()
    results: dict[str, Result] = {}
    seconds = audio = 0.0
    for recording in spoken[: 1 if run.tiny else None]:
        started = time.perf_counter()
        results[recording.name] = whisper.transcribe(
            model, recording.wave, fp16=fp16, **options
        )
        seconds += time.perf_counter() - started
        audio += recording.seconds
        if seconds > _OFFICIAL_S:
            break
    run.report(
        "official",
        model="base",
        case=case,
        requests=len(results),
        audio_s=audio,
        seconds=seconds,
        times_real_time=audio / seconds,
    )
    return results


def _engine(
    run: Run,
    engine: Engine,
    spoken: list[Recording],
    at_once: int,
    case: str,
    options: dict[str, Any],
    expected: dict[str, Result],
) -> None:
    count = at_once if run.tiny else at_once * _ROUNDS[at_once]
    asked = [spoken[number % len(spoken)] for number in range(count)]
    with watched_gpu() as busy:
        served = serve(engine, asked, at_once, **options)
    results = dict(zip([r.name for r in asked], served.results, strict=True))
    texts = [
        results[n]["text"] == expected[n]["text"] for n in expected if n in results
    ]
    run.report(
        "engine",
        model="base",
        case=case,
        at_once=at_once,
        **served.figures(),
        busy_percent=sum(busy) / len(busy) if busy else None,
        texts_compared=len(texts),
        texts_equal=sum(texts),
    )


def _switch_interval(
    run: Run, engine: Engine, spoken: list[Recording], at_once: int
) -> None:
    """Compare Python's default switch interval with the engine's, in turn."""
    asked = [
        spoken[n % len(spoken)] for n in range(at_once if run.tiny else 2 * at_once)
    ]
    ours = sys.getswitchinterval()
    for interval in (0.005, ours, 0.005, ours):
        try:
            run.need(3)
        except OutOfTimeError:
            return
        sys.setswitchinterval(interval)
        served = serve(engine, asked, at_once, beam_size=5, **base_options(run))
        run.report(
            "switch interval",
            interval_s=interval,
            at_once=at_once,
            times_real_time=served.audio_seconds / served.seconds,
        )
