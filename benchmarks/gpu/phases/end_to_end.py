"""Times whole requests with random weights, at as many tokens a window as speech has."""

from benchmarks.gpu.audio import noise
from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.requests import serve, watched_gpu
from benchmarks.gpu.run import Run
from deployments.engine import Engine, own_process

MODELS = ("turbo", "large-v3", "medium")
# A window of speech has about this many tokens.
STEPS = 110
_EOT = 50257


def measure(run: Run) -> None:
    own_process()
    for name in MODELS[:1] if run.tiny else MODELS:
        run.need(15)
        dims = tiny(DIMENSIONS[name]) if run.tiny else DIMENSIONS[name]
        model = random_model(dims, run.device)
        with Engine(model) as engine:
            del model
            run.forget()
            stats = engine.stats()
            run.report(
                "engine",
                model=name,
                slots=stats.slots,
                slot_bytes=stats.slot_bytes,
                bytes_held=stats.bytes_held,
            )
            for beams in (5, None):
                for at_once in [2] if run.tiny else [32, 1]:
                    run.need(8)
                    _measure(run, name, engine, at_once, beams)
        engine.join(10)
        del engine
        run.forget()


def _measure(
    run: Run, name: str, engine: Engine, at_once: int, beams: int | None
) -> None:
    count = 2 if run.tiny else (2 * at_once if at_once > 1 else 3)
    seconds = 3 if run.tiny else 60
    asked = [noise(seconds, seed) for seed in range(count)]
    options = {
        "language": "en",
        "temperature": 0.0,
        "beam_size": beams,
        # No window ends early, and each begins where the one before ended.
        "suppress_tokens": [_EOT],
        "suppress_blank": False,
        "sample_len": 3 if run.tiny else STEPS,
        "without_timestamps": True,
        "condition_on_previous_text": False,
        "compression_ratio_threshold": None,
        "logprob_threshold": None,
        "no_speech_threshold": None,
    }
    serve(engine, asked[:at_once], at_once, **options | {"sample_len": 2})
    with watched_gpu() as busy:
        served = serve(engine, asked, at_once, **options)
    run.report(
        "requests",
        model=name,
        beams=beams or 1,
        at_once=at_once,
        steps=options["sample_len"],
        **served.figures(),
        busy_percent=sum(busy) / len(busy) if busy else None,
    )
