"""Profiles a step and the reading of prompts: kernels, and how long the GPU is idle."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from whisper.model import ModelDimensions

from benchmarks.gpu.models import measured, random_model
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

MODELS = ("turbo", "base", "large-v3")
_STEPS = 5


def measure(run: Run) -> None:
    for name, dims in measured(run, MODELS):
        run.attempt(name, partial(_model, run, name, dims), 5)


def _model(run: Run, name: str, dims: ModelDimensions) -> None:
    count = 2 if run.tiny else 32
    windows = Windows(random_model(dims, run.device), run, slots=count)
    windows.begin(count, 5)
    for _ in range(2 if run.tiny else 30):
        windows.step()
    _profile(run, name, "step", count, windows.step, _STEPS)
    few = min(8, count)
    _profile(run, name, "join", few, partial(windows.begin, few, 5), 1)


def _profile(
    run: Run, name: str, what: str, windows: int, work: Callable[[], None], calls: int
) -> None:
    work()
    activities = [ProfilerActivity.CPU]
    if run.on_gpu:
        activities.append(ProfilerActivity.CUDA)

    def all_calls() -> None:
        for _ in range(calls):
            work()

    with profile(activities=activities) as profiled:
        run.seconds(all_calls)
    # The time is taken without the profiler, which adds its own.
    seconds = run.seconds(all_calls)
    events = profiled.key_averages()
    order = "self_device_time_total" if run.on_gpu else "self_cpu_time_total"
    table = events.table(sort_by=order, row_limit=25, max_name_column_width=70)
    with (run.out / "kernels.txt").open("a") as file:
        file.write(f"{name}, {what}, {calls} calls\n{table}\n\n")
    kernels, device_us = on_the_device(events)
    run.report(
        "profile",
        model=name,
        what=what,
        windows=windows,
        kernels=kernels / calls if run.on_gpu else None,
        device_ms=device_us / 1e3 / calls if run.on_gpu else None,
        ms=1e3 * seconds / calls,
    )


def on_the_device(events: Iterable[Any]) -> tuple[int, float]:
    """Kernels and copies on the GPU, and their time in microseconds.

    An operation of the CPU carries the time of its kernels as well, which would count twice.
    """
    found = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    counts = sum(event.count for event in found)
    return counts, sum(event.self_device_time_total for event in found)
