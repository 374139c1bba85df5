"""Times each part of the engine by itself, for models of every size with random weights."""

from functools import partial

import torch
from whisper.model import ModelDimensions

from benchmarks.gpu.models import measured, random_model
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

MODELS = ("turbo", "large-v3", "base", "medium")
_PROMPT = 200


def measure(run: Run) -> None:
    for name, dims in measured(run, MODELS):
        run.attempt(name, partial(_model, run, name, dims), 8)


def _model(run: Run, name: str, dims: ModelDimensions) -> None:
    lanes = [1, 2] if run.tiny else [1, 8, 32]
    windows = Windows(random_model(dims, run.device), run, slots=lanes[-1])
    run.empty_cache()
    for count in lanes:
        for beams in (1, 5):
            work = partial(_steps, run, name, windows, count, beams)
            run.attempt(f"{name}, {count} windows, {beams} beams", work, 2)
    for count in [1, 2] if run.tiny else [1, 2, 4, 8, 16]:
        work = partial(_encode, run, name, windows, dims, count)
        run.attempt(f"{name}, encoding of {count}", work)
    seconds = run.seconds_each(windows.write_audio)
    run.report("cross keys and values", model=name, ms=1e3 * seconds)
    for count in lanes:
        for prompt in (0, _PROMPT):
            work = partial(_join, run, name, windows, count, prompt)
            run.attempt(f"{name}, joining of {count}", work)


def _steps(run: Run, name: str, windows: Windows, count: int, beams: int) -> None:
    windows.begin(count, beams)
    for _ in range(1 if run.tiny else 30):
        windows.step()
    calls = 1 if run.tiny else 20
    seconds = run.seconds_each(windows.step, calls)
    # The columns in use are those in the middle of the three rounds that are timed.
    middle = 30 + 1 + 3 * calls // 2
    others = None
    if count > 1:
        changes = run.seconds_each(partial(_change, windows), max(1, calls // 2))
        others = 1e3 * changes / 2
    run.report(
        "step",
        model=name,
        windows=count,
        beams=beams,
        columns=4 + middle * beams,
        ms=1e3 * seconds,
        ms_of_others=others,
    )


def _change(windows: Windows) -> None:
    """Take two steps, each with other windows than the step before it."""
    windows.step()
    windows.step(len(windows.slots) - 1)


def _encode(
    run: Run, name: str, windows: Windows, dims: ModelDimensions, count: int
) -> None:
    shape = (count, dims.n_mels, 2 * dims.n_audio_ctx)
    mel = torch.randn(shape, device=run.device)
    seconds = run.seconds_each(partial(windows.encode, mel), calls=5)
    run.report("encode", model=name, windows=count, ms=1e3 * seconds)


def _join(run: Run, name: str, windows: Windows, count: int, prompt: int) -> None:
    seconds = run.seconds_each(partial(windows.begin, count, 5, prompt), calls=3)
    run.report("join", model=name, windows=count, prompt=prompt, ms=1e3 * seconds)
