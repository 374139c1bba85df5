"""Runs the engine's tests on the device in fp32, and counts how often a step makes the host wait."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.gpu.models import DIMENSIONS, random_model, tiny
from benchmarks.gpu.run import Run
from benchmarks.gpu.windows import Windows

# Two tests show that pytest runs.
_TINY = ["tests/engine/test_layers.py", "-k", "layer_norm"]
_KINDS = ("tests", "failures", "errors", "skipped")


def measure(run: Run) -> None:
    command = [sys.executable, "-m", "pytest", f"--device={run.device.type}"]
    record = run.out / "tests.xml"
    command += ["-p", "no:cacheprovider", "--durations=15", f"--junitxml={record}"]
    command += _TINY if run.tiny else ["tests/engine", *_in_parallel()]
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=run.pack,
            capture_output=True,
            text=True,
            timeout=max(10, run.seconds_left - 15),
        )
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        status = -1
    (run.out / "tests.txt").write_text(output)
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    run.report("tests", status=status, counts=_counts(record), names=failed[:40])
    _waits(run)


def _counts(record: Path) -> dict[str, int]:
    """The counts of pytest's own record, or none where pytest did not finish."""
    if not record.exists():
        return {}
    (suite,) = ElementTree.parse(record).iter("testsuite")
    counts = {kind: int(suite.attrib[kind]) for kind in _KINDS}
    record.unlink()
    return counts


def _in_parallel() -> list[str]:
    """One process with tests of some milliseconds does not keep a GPU busy."""
    try:
        import xdist  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return []
    return ["-n", str(min(6, max(1, (os.cpu_count() or 1) // 2)))]


def _waits(run: Run) -> None:
    """Count the operations that make the host wait, as CUDA itself reports them."""
    if not run.on_gpu:
        return
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
    return len([w for w in caught if "synchroniz" in str(w.message)])
