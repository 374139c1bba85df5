"""Many concurrent jobs in one RunPod worker, beside the same jobs one by one and official Whisper.

    python -m benchmarks.runpod_jobs [RECORDING ... | --manifest PATH] [--jobs N] [--model NAME]
                                     [--name-languages]

Real speech of 3 to 30 s, with the contract's defaults: the language detected, beam 5, the fallback
ladder. With --name-languages every job names the language that official has detected before.
Official is `whisper.transcribe` in a process that has loaded the model. The worker is ready before
it is timed, takes its jobs from a stand-in of RunPod's job API and fetches the recordings over
loopback HTTP. In each round all three do all recordings once. The table of medians goes to stdout,
progress to stderr.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import whisper
from whisper.audio import N_FRAMES, N_SAMPLES

from benchmarks import recordings
from benchmarks.recordings import Recording
from tests.support.http_server import served_file
from tests.support.runpod_process import Worker, running_worker
from tools.weights import weights

SHORTEST_S, LONGEST_S = 3.0, 30.0
_LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

Texts = list[str]
Job = dict[str, str | None]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runpod_jobs")
    recordings.add_arguments(parser)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="base")
    parser.add_argument("--name-languages", action="store_true")
    arguments = parser.parse_args()
    arguments.seconds = float("inf")
    paths = recordings.chosen(parser, arguments, SHORTEST_S, LONGEST_S)
    paths = [paths[number % len(paths)] for number in range(arguments.jobs)]
    spoken = recordings.load(paths)
    seconds = sum(recording.seconds for recording in spoken)
    model = whisper.load_model(str(weights(arguments.model)), "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    named = arguments.name_languages
    languages = [_language(model, one) if named else None for one in spoken]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = [stack.enter_context(served_file(path)) for path in paths]
        jobs = [
            {"audio": url, "language": language}
            for url, language in zip(urls, languages, strict=True)
        ]
        worker = stack.enter_context(
            running_worker(folder / "log", *urls, WHISPER_MODEL=arguments.model)
        )
        systems: dict[str, Callable[[], Texts]] = {
            "whisper.transcribe, one by one": lambda: _official(
                model, spoken, languages
            ),
            "worker, one job at a time": lambda: _one_by_one(worker, jobs),
            f"worker, {len(jobs)} jobs at once": lambda: _at_once(worker, jobs),
        }
        times, texts = _measure(systems, arguments.rounds)
    official, one, many = systems
    medians = {name: statistics.median(times[name]) for name in systems}
    print(
        f"{arguments.model}, {len(jobs)} recordings of {SHORTEST_S:g} to {LONGEST_S:g} s,"
        f" {seconds:.0f} s of audio,"
        f" languages {'named' if named else 'detected'}, {len(os.sched_getaffinity(0))} cores"
        f" ({platform.machine()}), medians of {arguments.rounds}\n"
    )
    print(
        "| | seconds | official / this | texts equal to official |\n|---|--:|--:|--:|"
    )
    for name in systems:
        equal = sum(a == b for a, b in zip(texts[name], texts[official], strict=True))
        ratio = medians[official] / medians[name]
        print(
            f"| {name} | {medians[name]:.1f} | {ratio:.2f} | {equal} of {len(jobs)} |"
        )
    print(f"\none at a time / at once: {medians[one] / medians[many]:.2f}")


def _measure(
    systems: dict[str, Callable[[], Texts]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Texts]]:
    times: dict[str, list[float]] = {name: [] for name in systems}
    texts: dict[str, Texts] = {}
    for number in range(1, rounds + 1):
        for name, transcribe in systems.items():
            started = time.monotonic()
            texts[name] = transcribe()
            times[name].append(time.monotonic() - started)
            _say(f"round {number} of {rounds}, {name}: {times[name][-1]:.1f} s")
    return times, texts


def _language(model: whisper.Whisper, spoken: Recording) -> str:
    if not model.is_multilingual:
        return "en"
    n_mels = model.dims.n_mels
    mel = whisper.log_mel_spectrogram(spoken.wave, n_mels, padding=N_SAMPLES)
    _, probabilities = model.detect_language(whisper.pad_or_trim(mel, N_FRAMES))
    return max(probabilities, key=probabilities.__getitem__)


def _official(
    model: whisper.Whisper, spoken: list[Recording], languages: list[str | None]
) -> Texts:
    options = {"beam_size": 5, "best_of": 5, "temperature": _LADDER, "fp16": False}
    return [
        model.transcribe(one.wave, language=language, **options)["text"].strip()
        for one, language in zip(spoken, languages, strict=True)
    ]


def _one_by_one(worker: Worker, jobs: list[Job]) -> Texts:
    return [text for job in jobs for text in _at_once(worker, [job])]


def _at_once(worker: Worker, jobs: list[Job]) -> Texts:
    submitted = worker.api.submit(*jobs)
    results = worker.api.results(*submitted, timeout_s=3600)
    return [result["output"]["transcription"] for result in results]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
