"""Where the engine's time goes, part by part, beside the least that the processor allows.

    python -m benchmarks.engine_profile [RECORDING ... | --manifest PATH]
        [--beam-size N] [--at-once N] [--out FILE.md]

The recordings are transcribed once at temperature 0, `--at-once` of them at a time, and their
languages are detected. Without arguments these are the recordings in tests/audio. The least time of
a part is its floating-point operations over the rate of a large matrix product. For a step, the
bytes of the audio's keys and values over the rate of a sum are added. Both rates are measured
first. This works on a CPU only: on a GPU a call returns before its work is done.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from whisper.model import ModelDimensions

from benchmarks import engine_report, recordings
from benchmarks.floors import Machine, Work
from benchmarks.recordings import Recording
from deployments import catalog
from deployments.engine import Engine
from deployments.engine.model.layers import linear
from deployments.replica import loading as model_loading
from tools.weights import weights

_GIGA = 1e9


@dataclass
class Part:
    """least_s: the least time of all calls together; None: not known"""

    name: str
    calls: int = 0
    seconds: float = 0.0
    least_s: float | None = 0.0


class Profile:
    """Measures the parts of an engine, by wrappers around the public methods of its runner."""

    def __init__(self, engine: Engine, dims: ModelDimensions, work: Work) -> None:
        self.parts: dict[str, Part] = {}
        runner = engine.scheduler.runner
        batch, decoder = runner.batch, runner.decoder
        self._watch(runner, "encoder", "encoder", lambda mel: work.encode(len(mel)))
        self._watch(
            decoder,
            "write_cross_kv",
            "audio's keys and values",
            lambda *_: work.cross_keys_values(),
        )
        self._watch(decoder, "first_token_logits", "language from features")
        self._watch(batch, "join", "reading prompts")
        self._watch(
            batch,
            "step",
            "steps",
            lambda slots: work.step(len(slots), batch.rows(slots)),
        )
        self._watch_each(runner.spectrograms, "in_pieces", "spectrograms")
        self._watch_each(runner, "align", "alignment")

    def _part(self, name: str, least: object | None) -> Part:
        part = self.parts[name] = Part(name, least_s=None if least is None else 0.0)
        return part

    def _watch(
        self,
        owner: Any,
        attribute: str,
        name: str,
        least: Callable[..., float] | None = None,
    ) -> None:
        part = self._part(name, least)
        inner = getattr(owner, attribute)

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*arguments)
            finally:
                part.seconds += time.perf_counter() - started
                part.calls += 1
                if least is not None and part.least_s is not None:
                    part.least_s += least(*arguments)

        setattr(owner, attribute, timed)

    def _watch_each(self, owner: Any, attribute: str, name: str) -> None:
        """Measure a generator: every item is a call."""
        part = self._part(name, None)
        inner = getattr(owner, attribute)

        def timed(*arguments: Any) -> Generator[Any, None, Any]:
            items = inner(*arguments)
            while True:
                started = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
                finally:
                    part.seconds += time.perf_counter() - started
                    part.calls += 1
                yield item

        setattr(owner, attribute, timed)

    def reset(self) -> None:
        for part in self.parts.values():
            part.calls, part.seconds = 0, 0.0
            part.least_s = None if part.least_s is None else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_profile")
    recordings.add_arguments(parser)
    add = parser.add_argument
    add("--model", default="base", choices=list(catalog.MODELS), metavar="NAME")
    add("--beam-size", type=int, help="none: greedy")
    add("--at-once", type=int, default=8)
    add("--threads", type=int, default=2)
    add("--out", type=Path, metavar="FILE.md")
    arguments = parser.parse_args()
    page = _page(arguments, recordings.load(recordings.chosen(parser, arguments)))
    print(page)
    if arguments.out:
        arguments.out.write_text(page + "\n")


def _page(arguments: argparse.Namespace, chosen: list[Recording]) -> str:
    # PyTorch's worker threads end with this thread, as in `benchmarks.engine`.
    with ThreadPoolExecutor(1) as thread:
        engine, dims, machine = thread.submit(_prepared, arguments).result()
    profile = Profile(engine, dims, Work(dims, machine, number_bytes=4))

    def transcribe(recording: Recording) -> None:
        engine.transcribe(recording.pcm, temperature=0.0, beam_size=arguments.beam_size)

    with engine, ThreadPoolExecutor(arguments.at_once) as callers:
        callers.submit(transcribe, chosen[0].beginning(5)).result()
        profile.reset()
        started = time.perf_counter()
        list(callers.map(transcribe, chosen))
        seconds = time.perf_counter() - started
    about = engine_report.machine(arguments.threads)
    command = shlex.join(["python", "-m", "benchmarks.engine_profile", *sys.argv[1:]])
    audio_s = sum(recording.seconds for recording in chosen)
    rates = f"{machine.flops / _GIGA:.0f} GFLOP/s, {machine.bandwidth / _GIGA:.0f} GB/s"
    return f"""# Where the engine's time goes

    {command}

{about["date"]}; {about["cpu"]}, {about["threads"]} threads, measured: {rates}.
Model {arguments.model}, fp32, {len(chosen)} recordings,
{audio_s:.0f} s of audio in {seconds:.1f} s.

{_table([*profile.parts.values()], seconds)}"""


def _prepared(arguments: argparse.Namespace) -> tuple[Engine, ModelDimensions, Machine]:
    checkpoint = weights(arguments.model)
    official = catalog.find(arguments.model)
    model = model_loading.load_model(checkpoint, official)
    torch.set_num_threads(arguments.threads)
    return Engine(model), model.dims, _machine()


def _machine() -> Machine:
    size = 2048
    x, numbers = torch.randn(size, size), torch.randn(1 << 26)
    product = linear(torch.randn(size, size), None, torch.float32, size)
    return Machine(
        2 * size**3 / _best_time(lambda: product(x)),
        numbers.nbytes / _best_time(numbers.sum),
    )


def _best_time(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _table(parts: Sequence[Part], seconds: float) -> str:
    rest = seconds - sum(part.seconds for part in parts)
    rows = [
        ["part", "calls", "seconds", "share", "ms a call", "least ms"],
        [":--"] + ["--:"] * 5,
    ]
    for part in [*parts, Part("rest", 1, rest, None)]:
        if not part.calls:
            continue
        least = "" if part.least_s is None else f"{part.least_s / part.calls * 1e3:.1f}"
        each = part.seconds / part.calls * 1e3
        share = part.seconds / seconds
        rows.append(
            [
                part.name,
                str(part.calls),
                f"{part.seconds:.2f}",
                f"{share:.0%}",
                f"{each:.1f}",
                least,
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
