"""From the start of a process to its first result: the RunPod worker beside a plain script.

    python -m benchmarks.cold_start [--rounds N] [--model NAME] [--recording FILE] [--json FILE]

In each round both start once, in turn, on the CPU. The script imports whisper, loads the model and
transcribes. The worker finds one job waiting at a stand-in of RunPod's job API and posts its result
there. Everything has been read before, so files come from the page cache. The table of medians goes
to stdout, progress to stderr.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import served_file
from tests.support.job_api import JobApi
from tools.weights import weights, weights_environment

_RECORDING = Path(__file__).parent.parent / "tests" / "audio" / "jfk.flac"
_TIMEOUT_S = 300

Stages = dict[str, float]


def plain(checkpoint: Path, recording: Path) -> tuple[Stages, str]:
    """Seconds of each stage of the plain script, `total` among them, and its text."""
    command = [sys.executable, "-m", "benchmarks.plain_script"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, str(checkpoint), str(recording)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    # The clock stops at the answer, not at the end of the process.
    answer = json.loads(process.stdout.readline())
    total = time.monotonic() - started
    process.wait(_TIMEOUT_S)
    rest = total - sum(answer["stages"].values())
    return answer["stages"] | {"python": rest, "total": total}, answer["text"]


def worker(model: str, recording: Path) -> tuple[Stages, str]:
    """Seconds of each stage of the worker's start, `total` among them, and its first job's text."""
    with (
        tempfile.NamedTemporaryFile("r") as log,
        JobApi() as api,
        served_file(recording) as url,
    ):
        [job] = api.submit({"audio": url})
        environment = {
            "WHISPER_MODEL": model,
            "WHISPER_ALLOW_HOSTS": urlsplit(url).netloc,
        }
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.runpod"],
            env=os.environ | weights_environment() | environment | api.environment(),
            stdout=subprocess.DEVNULL,
            stderr=open(log.name, "w"),  # noqa: SIM115 - the worker's
        )
        try:
            api.results(job, timeout_s=_TIMEOUT_S)
            result = api.of(job, "result")[-1]
        finally:
            process.terminate()
            process.wait(60)
        text = log.read()
    stages = _stages_of(text, "ready")
    taken = api.taken[job] - started
    stages |= {f"model: {name}": s for name, s in _stages_of(text, "loaded").items()}
    own = sum(_stages_of(text, "ready").values())
    stages |= {
        "python, SDK": taken - own,
        "first job": result.at - api.taken[job],
        "total": result.at - started,
    }
    return stages, result.body["output"]["transcription"]


def _stages_of(log: str, event: str) -> Stages:
    """The stages in the log's line of this event, in seconds."""
    [line] = [line for line in log.splitlines() if f"event={event}" in line]
    known = r"settings|ray|imports|serve|models|first_answer|verify|import|read|prepare|warm_up"
    return {name: float(s) for name, s in re.findall(rf"\b({known})=([\d.]+)", line)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="base")
    parser.add_argument("--recording", type=Path, default=_RECORDING)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    checkpoint = weights(arguments.model)
    rounds: dict[str, list[Stages]] = {"plain": [], "worker": []}
    # One more before, so that every file has been read.
    for number in range(arguments.rounds + 1):
        scripts, text = plain(checkpoint, arguments.recording)
        stages, own_text = worker(arguments.model, arguments.recording)
        assert own_text == text
        _say(
            f"round {number} of {arguments.rounds}: script {scripts['total']:.1f} s,"
            f" worker {stages['total']:.1f} s"
        )
        if number > 0:
            rounds["plain"].append(scripts)
            rounds["worker"].append(stages)
    medians = {name: _medians(of) for name, of in rounds.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rounds, "medians": medians}))
    _print(medians, arguments)


def _medians(rounds: list[Stages]) -> Stages:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def _print(medians: dict[str, Stages], arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"{arguments.model}, {arguments.recording.name}, {cores} cores ({platform.machine()}),"
        f" medians of {arguments.rounds}, seconds"
    )
    for name, stages in medians.items():
        print(f"\n| {name} | s |\n|---|--:|")
        for stage, seconds in stages.items():
            print(f"| {stage} | {seconds:.2f} |")
    ratio = medians["worker"]["total"] / medians["plain"]["total"]
    print(f"\nworker / plain script: {ratio:.2f}")


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
