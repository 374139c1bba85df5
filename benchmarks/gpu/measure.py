"""Measure the engine on this machine's GPU, with what `prepare` has packed.

    python3 -m benchmarks.gpu.measure --out FOLDER [--phases NAME,...] [--seconds N]

Every figure is a line of JSON that is appended to FOLDER/results.jsonl at once. The most valuable phases run first. Each
phase runs in a process of its own, which is killed when its time is up; the figures that it has written remain.
"""

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# The folder that `prepare` has packed this file into.
PACK = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Phase:
    """module: in `benchmarks.gpu.phases`; seconds: what it may take"""

    module: str
    seconds: float


# The most valuable phase comes first.
PHASES = {
    "environment": Phase("environment", 20),
    "tests": Phase("engine_tests", 80),
    "speech": Phase("speech", 90),
    "steps": Phase("steps", 70),
    "fidelity": Phase("fidelity", 60),
    "end-to-end": Phase("end_to_end", 80),
    "official": Phase("official", 40),
    "kernels": Phase("kernels", 25),
    "profile": Phase("profile", 30),
}


def main() -> int:
    arguments = _parser().parse_args()
    # The tests' process has another working directory.
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    _gather_weights(arguments.weights)
    _stand_in_for_numba()
    ends = time.monotonic() + arguments.seconds
    # The phases' processes inherit these imports. This process itself must not touch the GPU before it forks.
    import torch  # noqa: F401
    import whisper  # noqa: F401

    command = shlex.join(["python3", "-m", "benchmarks.gpu.measure", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    about = {"command": command, "date": date, "tiny": arguments.tiny}
    _write(arguments.out, phase="all", measure="begin", **about)
    for name in arguments.phases:
        seconds = min(PHASES[name].seconds, ends - time.monotonic())
        if seconds < 1:
            _write(arguments.out, phase=name, measure="skipped", reason="no time left")
            continue
        started = time.monotonic()
        reason = _in_a_process(partial(_phase, name, arguments, seconds), seconds)
        took = round(time.monotonic() - started, 1)
        _write(arguments.out, phase=name, measure="end", seconds=took, reason=reason)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.measure")
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--phases", type=_names, default=list(PHASES), help=",".join(PHASES))
    add("--seconds", type=float, default=480, help="for all of them together")
    add("--weights", type=Path, default=Path("/tmp/whisper-gpu-kit"), metavar="FOLDER")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tiny", action="store_true", help="whether all of it works, in no time")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PHASES):
        raise argparse.ArgumentTypeError(f"no such phase: {', '.join(sorted(unknown))}")
    return names


def _gather_weights(folder: Path) -> None:
    """Copy the parts of the weights together: a later call on the same machine may bring other parts than this one."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PACK.parent.glob("*/base.*"):
        shutil.copy(part, folder)


def _stand_in_for_numba() -> None:
    """Replace Numba where it cannot be imported. Whisper compiles one loop with it, which is slow without."""
    try:
        import numba  # noqa: F401
    except Exception:  # noqa: BLE001 - Numba refuses versions of NumPy that it does not know
        folder = str(Path(__file__).parent / "stubs")
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        )


def _phase(name: str, arguments: argparse.Namespace, seconds: float) -> None:
    import torch

    from benchmarks.gpu.run import Run

    run = Run(
        name,
        torch.device(arguments.device),
        arguments.tiny,
        PACK,
        arguments.weights,
        arguments.out,
        time.monotonic() + seconds,
    )
    importlib.import_module(f"benchmarks.gpu.phases.{PHASES[name].module}").measure(run)


def _in_a_process(work: Callable[[], None], seconds: float) -> str:
    """Run `work` in a forked process, kill it when its time is up, and return how it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def told() -> None:
        from benchmarks.gpu.models import WeightsMissingError
        from benchmarks.gpu.run import OutOfTimeError

        try:
            work()
            theirs.send("done")
        except (OutOfTimeError, WeightsMissingError) as error:
            theirs.send(f"{type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
            traceback.print_exc()
            theirs.send(f"{type(error).__name__}: {error}"[:300])
            raise SystemExit(1) from None

    process = context.Process(target=told)
    process.start()
    theirs.close()
    process.join(seconds + 5)
    if process.is_alive():
        process.kill()
        process.join()
        return f"killed after {seconds:.0f} s"
    return str(ours.recv()) if ours.poll() else f"ended with status {process.exitcode}"


def _write(out: Path, **line: object) -> None:
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
