"""The engine beside official `whisper.transcribe` and faster-whisper, in one process.

All transcribe the same recordings with the same weights.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.engine [RECORDING ... | --manifest PATH]
        [--json FILE] [--plot FILE.svg] [--out FILE.md]

Official Whisper and faster-whisper take one recording after the other. So does faster-whisper
batched, which by default leaves out silence, cuts the rest of a recording into pieces, and decodes
the pieces together and without timestamps. The engine has 1, 4 and 8 requests at once. All systems
decode at temperature 0 only, and detect the language themselves. In each round every system
transcribes all recordings once, and another system begins. Without arguments the recordings are
those in tests/audio. On a GPU all systems run in half precision, on a CPU in fp32.

The table goes to stdout, progress to stderr. "Texts equal" counts recordings whose text is the
official one in every round. "All equal" counts recordings whose segments are equal too: tokens and
times, and words and their times if the case has words.
"""

import argparse
import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from whisper.model import Whisper

from benchmarks import engine_report, recordings
from benchmarks.engine_report import Measurement
from benchmarks.recordings import Recording
from deployments import catalog
from deployments.engine import Engine
from deployments.replica import loading as model_loading
from tools.weights import weights

# Seconds of a recording that every system transcribes before it is timed.
_WARM_UP_S = 5

Result = dict[str, Any]  # at least `text`; from Whisper and the engine also `segments`


@dataclass(frozen=True)
class Case:
    """How to decode. beam_size: None decodes greedily"""

    beam_size: int | None
    words: bool


CASES = {
    "beam5": Case(5, words=False),
    "greedy": Case(None, words=False),
    "beam5-words": Case(5, words=True),
    "greedy-words": Case(None, words=True),
}


Transcribe = Callable[[Recording, Case], Result]


@dataclass(frozen=True)
class System:
    """A system that is measured.

    opened: makes the function that transcribes, for one measurement
    at_once: how many recordings it is given at the same time, each in a thread of its own
    """

    name: str
    opened: Callable[[], AbstractContextManager[Transcribe]]
    at_once: int = 1

    def measure(
        self, chosen: Sequence[Recording], warm_up: Recording, case: Case
    ) -> tuple[float, list[Result]]:
        """Seconds and results."""
        # PyTorch's worker threads end with the thread that has started them. If those of one
        # system were left, all systems after it would be slower.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._measure, chosen, warm_up, case).result()

    def _measure(
        self, chosen: Sequence[Recording], warm_up: Recording, case: Case
    ) -> tuple[float, list[Result]]:
        with self.opened() as transcribe, ThreadPoolExecutor(self.at_once) as callers:
            callers.submit(transcribe, warm_up, case).result()
            started = time.perf_counter()
            jobs = [callers.submit(transcribe, recording, case) for recording in chosen]
            results = [job.result() for job in jobs]
            return time.perf_counter() - started, results


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    paths = recordings.chosen(parser, arguments)
    with contextlib.redirect_stdout(sys.stderr):
        report = _measured(arguments, recordings.load(paths))
    if arguments.json == "-":
        print(json.dumps(report, indent=2))
    else:
        print(engine_report.table(report))
    if arguments.json not in (None, "-"):
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    if arguments.out:
        arguments.out.write_text(engine_report.page(report))
    if arguments.plot:
        engine_report.plot(report, arguments.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine")
    recordings.add_arguments(parser)
    add = parser.add_argument
    add("--model", default="base", choices=list(catalog.MODELS), metavar="NAME")
    add("--cases", type=_cases, default=list(CASES), help=f"of {','.join(CASES)}")
    add("--concurrency", type=_numbers, default=[1, 4, 8], help="such as 1,4,8")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2, help="of the CPU, for each system")
    add("--no-faster-whisper", action="store_true")
    add("--json", metavar="FILE", help="- for stdout, instead of the table")
    add("--plot", type=Path, metavar="FILE.svg")
    add("--out", type=Path, metavar="FILE.md")
    return parser


def _cases(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(CASES):
        raise argparse.ArgumentTypeError(f"not all of {','.join(CASES)}: {text}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _measured(arguments: argparse.Namespace, chosen: list[Recording]) -> dict[str, Any]:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    with ThreadPoolExecutor(1) as thread:
        systems = thread.submit(_systems, arguments).result()
    measurements = [
        measurement
        for name in arguments.cases
        for measurement in _rounds(name, systems, chosen, arguments.rounds)
    ]
    about = {
        "model": arguments.model,
        "command": shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]]),
        **engine_report.machine(arguments.threads),
    }
    return about | engine_report.summary(chosen, measurements)


def _rounds(
    name: str, systems: list[System], chosen: list[Recording], rounds: int
) -> Iterator[Measurement]:
    case = CASES[name]
    short = min(chosen, key=lambda recording: recording.seconds).beginning(_WARM_UP_S)
    for number in range(rounds):
        first = number % len(systems)
        for system in [*systems[first:], *systems[:first]]:
            seconds, results = system.measure(chosen, short, case)
            progress = f"{name}, round {number + 1} of {rounds}, {system.name}"
            print(f"{progress}: {seconds:.1f} s", file=sys.stderr, flush=True)
            yield Measurement(name, system.name, seconds, results)


def _systems(arguments: argparse.Namespace) -> list[System]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = weights(arguments.model)
    official = catalog.find(arguments.model)
    model = model_loading.load_model(checkpoint, official).to(device)
    # Loading has set this as well. It holds for threads that are started from now on.
    torch.set_num_threads(arguments.threads)
    systems = [_official(model)]
    systems += [_engine(model, number) for number in arguments.concurrency]
    if not arguments.no_faster_whisper:
        systems += _faster_whisper(model, arguments.threads)
    return systems


def _official(model: Whisper) -> System:
    def transcribe(recording: Recording, case: Case) -> Result:
        return whisper.transcribe(
            model,
            recording.wave,
            temperature=0.0,
            beam_size=case.beam_size,
            word_timestamps=case.words,
            fp16=model.device.type == "cuda",
        )

    return System(engine_report.OFFICIAL, lambda: contextlib.nullcontext(transcribe))


def _engine(model: Whisper, at_once: int) -> System:
    @contextlib.contextmanager
    def opened() -> Iterator[Transcribe]:
        with Engine(model) as engine:

            def transcribe(recording: Recording, case: Case) -> Result:
                return engine.transcribe(
                    recording.pcm,
                    temperature=0.0,
                    beam_size=case.beam_size,
                    word_timestamps=case.words,
                )

            yield transcribe

    return System(f"engine, {at_once} at once", opened, at_once)


def _faster_whisper(official: Whisper, threads: int) -> list[System]:
    try:
        from faster_whisper import BatchedInferencePipeline

        from benchmarks import faster_whisper_model
    except ModuleNotFoundError as error:
        sys.exit(
            f"{error.name} is missing: pip install -r benchmarks/requirements.txt,"
            " or --no-faster-whisper"
        )
    device = official.device.type
    compute_type = "float16" if device == "cuda" else "float32"
    model = faster_whisper_model.load(official, device, compute_type, threads)

    def transcriber(
        pipeline: Any, **options: Any
    ) -> Callable[[], AbstractContextManager[Transcribe]]:
        def transcribe(recording: Recording, case: Case) -> Result:
            segments, _ = pipeline.transcribe(
                recording.wave,
                temperature=0.0,
                beam_size=case.beam_size or 1,
                word_timestamps=case.words,
                **options,
            )
            # The segments are a generator, which does its work here.
            return {"text": "".join(segment.text for segment in segments)}

        return lambda: contextlib.nullcontext(transcribe)

    batched = transcriber(BatchedInferencePipeline(model), batch_size=8)
    return [
        System(engine_report.FASTER_WHISPER, transcriber(model)),
        System(engine_report.BATCHED, batched),
    ]


if __name__ == "__main__":
    main()
