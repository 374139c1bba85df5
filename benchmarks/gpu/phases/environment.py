"""The machine: versions, rates of arithmetic and memory, costs of a launch and a small copy."""

import os
import platform
import subprocess
import time
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.gpu.run import Run

_SMI = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def measure(run: Run) -> None:
    run.report("versions", **_versions())
    run.report("device", **_device(run))
    run.attempt("copy", partial(_copy, run))
    for dtype in (torch.float16, torch.float32):
        # A CPU takes minutes for half precision.
        if run.on_gpu or dtype == torch.float32:
            run.attempt(f"product in {dtype}", partial(_product, run, dtype))
    run.attempt("launch", partial(_launches, run))
    if run.on_gpu:
        run.attempt("graph", partial(_graph, run))
    for numbers in (256, 1 << 15, 1 << 18):
        work = partial(_copies_from_the_host, run, numbers)
        run.attempt(f"copy of {numbers} numbers", work)
    if run.on_gpu:
        run.attempt("nvidia-smi", partial(_driver, run))


def _copy(run: Run) -> None:
    size = 1 << 24 if run.tiny else 1 << 30
    source = torch.empty(size, dtype=torch.uint8, device=run.device).random_()
    target = torch.empty_like(source)
    seconds = run.seconds_each(partial(target.copy_, source))
    run.report("copy", bytes_per_s=2 * size / seconds)


def _product(run: Run, dtype: torch.dtype) -> None:
    n = 256 if run.tiny else 8192
    a, b = torch.randn(2, n, n, device=run.device).to(dtype)
    seconds = run.seconds_each(partial(torch.matmul, a, b), calls=10)
    run.report("product", dtype=str(dtype), flops_per_s=2 * n**3 / seconds)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "numpy", "numba", "triton", "tiktoken"):
        try:
            found[name] = import_module(name).__version__
        except Exception as error:  # noqa: BLE001 - the measurement goes on without
            found[name] = f"{type(error).__name__}"
    found["cuda"] = torch.version.cuda
    found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def _device(run: Run) -> dict[str, object]:
    about: dict[str, object] = {"cores": os.cpu_count(), "cpu": _cpu()}
    if not run.on_gpu:
        return about | {"name": "CPU"}
    properties = torch.cuda.get_device_properties(run.device)
    return about | {
        "name": properties.name,
        "bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _driver(run: Run) -> None:
    query = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    told = subprocess.run(query, check=True, capture_output=True, text=True, timeout=5)
    run.report("driver", nvidia_smi=told.stdout.strip())


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].split(":")[1].strip() if names else platform.processor()


def _launches(run: Run) -> None:
    """The time of a tiny operation on the host, and until the device has finished it."""
    x = torch.zeros(1, device=run.device)
    calls = 20 if run.tiny else 2000

    def launch() -> None:
        for _ in range(calls):
            x.add_(1)

    launch()
    run.synchronize()
    started = time.perf_counter()
    launch()
    host = time.perf_counter() - started
    run.synchronize()
    whole = time.perf_counter() - started
    run.report(
        "launch",
        host_us=1e6 * host / calls,
        whole_us=1e6 * whole / calls,
    )


def _graph(run: Run) -> None:
    """The time of a captured graph for each of its nodes."""
    x = torch.zeros(1, device=run.device)
    nodes = 1000
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            x.add_(1)
    seconds = run.seconds_each(graph.replay, calls=10)
    run.report("graph", node_us=1e6 * seconds / nodes)


def _copies_from_the_host(run: Run, numbers: int) -> None:
    """How long a copy holds up the host while the device is busy with a large product."""
    n = 64 if run.tiny else 8192
    a = torch.randn(n, n, device=run.device)
    values = torch.arange(numbers)

    def waiting() -> Tensor:
        return values.to(run.device)

    def not_waiting() -> Tensor:
        return values.to(run.device, non_blocking=True)

    def pinned() -> Tensor:
        return values.pin_memory().to(run.device, non_blocking=True)

    ways = {"waiting": waiting, "not waiting": not_waiting}
    if run.on_gpu:
        ways["pinned, not waiting"] = pinned
    for way, copied in ways.items():
        copied()
        busy = run.seconds(partial(torch.matmul, a, a))
        torch.matmul(a, a)
        started = time.perf_counter()
        copied()
        held_up = time.perf_counter() - started
        run.synchronize()
        run.report(
            "host copy",
            way=way,
            bytes=values.nbytes,
            held_up_us=1e6 * held_up,
            busy_us=1e6 * busy,
        )
