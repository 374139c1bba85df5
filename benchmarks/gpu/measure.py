"""Measure the engine on this machine's GPU, with what `prepare` has packed.

    python3 -m benchmarks.gpu.measure --out FOLDER [--phases NAME,...] [--seconds N]

Every figure is a line of JSON that is appended to FOLDER/results.jsonl at once. The most valuable
phases run first. Each phase runs in a process of its own, which is killed when its time is up; the
figures that it has written remain. What failed or was left out is named on stderr at the end, and
makes the exit status 1.
"""

import argparse
import contextlib
import datetime
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.run import Run, append

# The folder that `prepare` has packed this file into.
PACK = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Phase:
    """A phase of the measurement.

    module: in `benchmarks.gpu.phases`
    seconds: the most that it may take; a tiny run is bounded by `--seconds` alone
    """

    module: str
    seconds: float


# Seconds that a phase may need to notice that its time is up.
_GRACE_S = 3

# The most valuable phase comes first.
PHASES = {
    "environment": Phase("environment", 20),
    "tests": Phase("engine_tests", 100),
    "speech": Phase("speech", 85),
    "chunks": Phase("chunks", 60),
    "steps": Phase("steps", 65),
    "fidelity": Phase("fidelity", 60),
    "end-to-end": Phase("end_to_end", 70),
    "official": Phase("official", 35),
    "kernels": Phase("kernels", 25),
    "profile": Phase("profile", 20),
}


def main() -> int:
    arguments = _parser().parse_args()
    # The tests' process has another working directory.
    arguments.out = arguments.out.resolve()
    if obstacle := _obstacle(arguments):
        print(f"error: {obstacle}", file=sys.stderr)
        return 1
    _measure(arguments)
    missing = _missing(arguments.out / "results.jsonl")
    print("\n".join(missing or ["everything was measured"]), file=sys.stderr)
    return 1 if missing else 0


def _obstacle(arguments: argparse.Namespace) -> str | None:
    """Make everything ready for a measurement. Returns why there cannot be one."""
    if not (PACK / "commit.txt").exists():
        return "run this in pack/1, which benchmarks.gpu.prepare makes"
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        _gather_weights(arguments.weights)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    _stand_in_for_numba()
    # This imports Whisper, and the phases' processes inherit it.
    from benchmarks.gpu import models

    if models.about(arguments.weights).get("tiny") and not arguments.tiny:
        return "this pack has a tiny model: pack without --tiny"
    if arguments.device == "cuda" and not _has_gpu():
        return "PyTorch finds no GPU; '--device cpu --tiny' checks that all else works"
    return None


def _measure(arguments: argparse.Namespace) -> None:
    ends = time.monotonic() + arguments.seconds
    append(
        arguments.out,
        phase="all",
        measure="begin",
        command=shlex.join(["python3", "-m", "benchmarks.gpu.measure", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        code=(PACK / "commit.txt").read_text().strip(),
        tiny=arguments.tiny,
    )
    for name in arguments.phases:
        seconds = ends - time.monotonic()
        if not arguments.tiny:
            seconds = min(PHASES[name].seconds, seconds)
        if seconds < 1:
            append(arguments.out, phase=name, measure="end", reason="no time left")
            continue
        started = time.monotonic()
        reason = _in_a_process(partial(_phase, name, arguments, seconds), seconds)
        took = round(time.monotonic() - started, 1)
        append(arguments.out, phase=name, measure="end", seconds=took, reason=reason)


def _missing(results: Path) -> list[str]:
    """What failed or was left out in the last call."""
    missing: list[str] = []
    for line in map(json.loads, results.read_text().splitlines()):
        if line["measure"] == "begin":
            missing = []
        elif line.get("reason", "done") != "done":
            what = line.get("what", "all of it")
            missing.append(f"{line['phase']}, {what}: {line['reason']}")
    return missing


def _has_gpu() -> bool:
    """Whether PyTorch finds a GPU.

    Another process asks, because one that has used CUDA cannot fork the phases.
    """

    def ask() -> None:
        os._exit(0 if torch.cuda.is_available() else 1)

    process = multiprocessing.get_context("fork").Process(target=ask)
    process.start()
    process.join()
    return process.exitcode == 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.measure")
    add = parser.add_argument
    add("--out", type=_folder, required=True, metavar="FOLDER")
    add("--phases", type=_names, default=list(PHASES), help=",".join(PHASES))
    add("--seconds", type=float, default=540, help="for all of them together")
    add("--weights", type=Path, default=Path("/tmp/whisper-gpu-kit"), metavar="FOLDER")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tiny", action="store_true", help="a quick check that everything works")
    return parser


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder is needed")
    return Path(text)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PHASES:
            known = ", ".join(PHASES)
            raise argparse.ArgumentTypeError(f"no phase '{name}' among {known}")
    return names


def _gather_weights(folder: Path) -> None:
    """Copy the parts of the weights to one folder, since later calls may bring other parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PACK.parent.glob("[0-9]/base.*"):
        shutil.copy(part, folder)


def _stand_in_for_numba() -> None:
    """Replace Numba where it cannot be imported.

    Whisper compiles one loop with Numba; without it, the loop is slow.
    """
    try:
        import numba  # noqa: F401
    except Exception:  # noqa: BLE001 - Numba refuses versions of NumPy that it does not know
        folder = str(Path(__file__).parent / "stubs")
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        )


def _phase(name: str, arguments: argparse.Namespace, seconds: float) -> None:
    run = Run(
        name,
        torch.device(arguments.device),
        arguments.tiny,
        PACK,
        arguments.weights,
        arguments.out,
        time.monotonic() + seconds,
    )
    if arguments.tiny:
        # Tiny operations gain nothing from threads, which wait for each other for seconds on a busy
        # machine.
        torch.set_num_threads(1)
    importlib.import_module(f"benchmarks.gpu.phases.{PHASES[name].module}").measure(run)


def _in_a_process(work: Callable[[], None], seconds: float) -> str:
    """Run `work` in a forked process, kill it when its time is up, and return how it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run_and_report() -> None:
        # Processes that it starts belong to its group and end with it.
        os.setsid()
        try:
            work()
            theirs.send("done")
        except BaseException as error:  # noqa: BLE001 - however it fails, the other phases run
            traceback.print_exc()
            theirs.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])

    process = context.Process(target=run_and_report)
    process.start()
    theirs.close()
    process.join(seconds + _GRACE_S)
    if process.is_alive():
        assert process.pid is not None
        with contextlib.suppress(
            ProcessLookupError
        ):  # The process may not have its group yet.
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        return f"killed after {seconds:.0f} s"
    try:
        return str(ours.recv())
    except EOFError:
        return f"ended with status {process.exitcode}"


if __name__ == "__main__":
    sys.exit(main())
