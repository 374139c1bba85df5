"""Profiles a step and the reading of prompts: kernels, and how long the GPU is idle."""

from collections.abc import Callable
from functools import partial

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

MODELS = ("turbo", "base", "large-v3")
_STEPS = 5


def measure(run: Run) -> None:
    for name in MODELS[:1] if run.tiny else MODELS:
        run.need(6)
        dims = tiny(DIMENSIONS[name]) if run.tiny else DIMENSIONS[name]
        count = 2 if run.tiny else 32
        windows = Windows(random_model(dims, run.device), run, slots=count)
        windows.begin(count, 5)
        for _ in range(2 if run.tiny else 30):
            windows.step()
        _measure(run, name, "step", windows.step, _STEPS)
        _measure(run, name, "join", partial(windows.begin, min(8, count), 5), 1)
        del windows
        run.forget()


def _measure(
    run: Run, name: str, what: str, work: Callable[[], None], calls: int
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
    device_us = sum(event.self_device_time_total for event in events)
    kernels = sum(event.count for event in events if event.self_device_time_total)
    order = "self_device_time_total" if run.on_gpu else "self_cpu_time_total"
    table = events.table(sort_by=order, row_limit=25, max_name_column_width=70)
    with (run.out / "kernels.txt").open("a") as file:
        file.write(f"{name}, {what}, {calls} calls\n{table}\n\n")
    run.report(
        "profile",
        model=name,
        what=what,
        kernels=kernels / calls if run.on_gpu else None,
        device_ms=device_us / 1e3 / calls if run.on_gpu else None,
        ms=1e3 * seconds / calls,
    )
