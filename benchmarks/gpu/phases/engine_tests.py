"""Runs the engine's tests on the device in fp32, and counts the waits of the host in a step."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import torch

from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

# Two tests show that pytest runs.
_TINY = ["tests/engine/model/test_layers.py", "-k", "layer_norm"]
# Seconds that are left for the work after the tests.
_RESERVE_S = 12
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_NAME = re.compile(
    r"tests/\S+\.py(?:::.*?)?(?= PASSED| FAILED| ERROR| SKIPPED| XFAIL| - |\s*$)"
)


def measure(run: Run) -> None:
    run.attempt("tests", partial(_tests, run))
    if run.on_gpu:
        run.attempt("waits", partial(_waits, run))


def _tests(run: Run) -> None:
    command = [sys.executable, "-m", "pytest", f"--device={run.device.type}", "-vv"]
    command += ["-p", "no:cacheprovider", "--durations=15"]
    command += _TINY if run.tiny else ["tests/engine", *_in_parallel()]
    log = run.out / "tests.txt"
    with log.open("w") as file:
        # In a session of its own, the tests' workers can be ended together with it.
        process = subprocess.Popen(
            command, cwd=run.pack, stdout=file, stderr=file, start_new_session=True
        )
        try:
            status: int | str = process.wait(max(5, run.seconds_left - _RESERVE_S))
        except subprocess.TimeoutExpired:
            status = "cut off"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = log.read_text().splitlines()
    counts, names = outcomes(lines)
    if not counts:
        raise RuntimeError(f"no test ran: {lines[-1] if lines else status}")
    run.report("tests", status=status, counts=counts, names=names)


def outcomes(lines: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Count the outcomes of tests, and name the failed ones, in what `pytest -vv` has printed."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for line in lines:
        # The summary after the tests repeats their names.
        if line.startswith("====") and counts:
            break
        found, name = _OUTCOME.search(line), _NAME.search(line)
        if found and name:
            counts[found[1].lower()] += 1
            if found[1] in ("FAILED", "ERROR"):
                failed.append(name[0])
    return dict(counts), failed


def _in_parallel() -> list[str]:
    """Options for several processes: a single one does not keep a GPU busy with short tests."""
    try:
        import xdist  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return []
    return ["-n", str(min(6, max(1, (os.cpu_count() or 1) // 2)))]


def _waits(run: Run) -> None:
    """Count the operations that make the host wait, as CUDA itself reports them."""
    model = random_model(tiny(DIMENSIONS["base"]), run.device)
    windows = Windows(model, run, slots=8)
    for beams in (1, 5):
        begin = partial(windows.begin, 4, beams)
        begin()
        run.report(
            "waits",
            beams=beams,
            join=_waits_of(begin),
            step=_waits_of(windows.step),
            step_of_others=_waits_of(partial(windows.step, 3)),
        )


def _waits_of(work: Callable[[], None]) -> int:
    work()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return waits_in([str(warning.message) for warning in caught])


def waits_in(messages: Iterable[str]) -> int:
    """How many of PyTorch's warnings tell of a wait.

    The first use of the mode also warns of the mode itself.
    """
    return sum("called a synchronizing" in message for message in messages)
