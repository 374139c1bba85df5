"""Times whole requests with random weights, at as many tokens a window as speech has."""

from functools import partial
from typing import Any

from whisper.model import ModelDimensions

from benchmarks.gpu.audio import noise
from benchmarks.gpu.models import measured, random_model
from benchmarks.gpu.requests import serve
from benchmarks.gpu.run import Run
from deployments.engine import Engine, own_process

MODELS = ("turbo", "large-v3", "medium")
# A window of speech has about this many tokens.
STEPS = 110
# No window is decoded twice, and each begins where the one before ended.
OPTIONS: dict[str, Any] = {
    "language": "en",
    "temperature": 0.0,
    "condition_on_previous_text": False,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


def measure(run: Run) -> None:
    own_process()
    for name, dims in measured(run, MODELS):
        run.attempt(name, partial(_model, run, name, dims), 12)


def _model(run: Run, name: str, dims: ModelDimensions) -> None:
    model = random_model(dims, run.device)
    with Engine(model) as engine:
        del model
        run.empty_cache()
        for beams in (5, None):
            for at_once in [2] if run.tiny else [32, 1]:
                work = partial(_requests, run, name, engine, at_once, beams)
                run.attempt(f"{name}, {at_once} at once", work, 6)
    engine.join(10)


def _requests(
    run: Run, name: str, engine: Engine, at_once: int, beams: int | None
) -> None:
    count = 2 if run.tiny else (2 * at_once if at_once > 1 else 3)
    asked = [noise(3 if run.tiny else 60, seed) for seed in range(count)]
    steps = 3 if run.tiny else STEPS
    options = OPTIONS | {"beam_size": beams}
    serve(engine, asked[:at_once], at_once, sample_len=2, **options)
    served = serve(engine, asked, at_once, sample_len=steps, **options)
    stats = engine.stats()
    run.report(
        "requests",
        model=name,
        beams=beams or 1,
        at_once=at_once,
        steps=steps,
        slots=stats.slots,
        bytes_held=stats.bytes_held,
        **served.figures(),
    )
