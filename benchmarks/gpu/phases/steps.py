"""Times each part of the engine by itself, for models of every size with random weights."""

from functools import partial

import torch
from whisper.model import ModelDimensions

from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

MODELS = ("turbo", "large-v3", "base", "medium")
_PROMPT = 200


def measure(run: Run) -> None:
    for name in MODELS[:1] if run.tiny else MODELS:
        run.need(8)
        dims = tiny(DIMENSIONS[name]) if run.tiny else DIMENSIONS[name]
        _measure(run, name, dims)
        run.forget()


def _measure(run: Run, name: str, dims: ModelDimensions) -> None:
    lanes = [1, 2] if run.tiny else [1, 8, 32]
    windows = Windows(random_model(dims, run.device), run, slots=lanes[-1])
    run.forget()
    for count in lanes:
        for beams in (1, 5):
            run.need(2)
            windows.begin(count, beams)
            for _ in range(1 if run.tiny else 30):
                windows.step()
            calls = 1 if run.tiny else 20
            # The columns in use are those in the middle of the three rounds that are timed.
            seconds = run.seconds_each(windows.step, calls)
            middle = 30 + 1 + 3 * calls // 2
            others = run.seconds_each(partial(_change, windows), calls // 2 or 1) / 2
            run.report(
                "step",
                model=name,
                windows=count,
                beams=beams,
                columns=4 + middle * beams,
                ms=1e3 * seconds,
                ms_of_others=1e3 * others if count > 1 else None,
            )
    for batch in [1, 2] if run.tiny else [1, 2, 4, 8, 16]:
        run.need(2)
        shape = (batch, dims.n_mels, 2 * dims.n_audio_ctx)
        mel = torch.randn(shape, device=run.device)

        seconds = run.seconds_each(partial(windows.encode, mel), calls=5)
        run.report("encode", model=name, windows=batch, ms=1e3 * seconds)
    run.report("listen", model=name, ms=1e3 * run.seconds_each(windows.listen))
    for count in lanes:
        for prompt in (0, _PROMPT):
            run.need(1)
            seconds = run.seconds_each(
                partial(windows.begin, count, 5, prompt), calls=3
            )
            run.report(
                "join", model=name, windows=count, prompt=prompt, ms=1e3 * seconds
            )


def _change(windows: Windows) -> None:
    """Take two steps, each with other windows than the step before it."""
    windows.step()
    windows.step(len(windows.slots) - 1 or 1)
