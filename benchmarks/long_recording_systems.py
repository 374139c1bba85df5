"""One system of `benchmarks.long_recording`, in a process of its own: so its memory is its own.

    python -m benchmarks.long_recording_systems SYSTEM RECORDING.npy [options]

`benchmarks.long_recording` starts it. One line of JSON goes to stdout.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import whisper
from whisper.model import Whisper

from benchmarks import recordings
from deployments import catalog
from deployments.contract.chunking import ServerVad
from deployments.contract.options import TranscriptionOptions
from deployments.cpus import cpu_threads
from deployments.engine import Engine, TranscriptionCancelled, own_process
from deployments.replica import loading
from deployments.replica.slot_shares import SlotShares
from deployments.replica.transcribing import LimitedEngine, transcribe
from tools.official import as_official
from tools.weights import weights

WHOLE = TranscriptionOptions(word_timestamps=True)
CHUNKED = TranscriptionOptions(word_timestamps=True, chunking_strategy=ServerVad())
# Of 11 s: the warm-up of every system, and the short recordings beside the long one.
SHORT = recordings.IN_THE_REPOSITORY / "jfk.flac"
SHORTS = 8
_ALONE = 5

Result = dict[str, Any]  # `text`, `language`, `words`: word, start, end
Transcribe = Callable[[np.ndarray], Result]


@dataclass(frozen=True)
class Setup:
    model: str
    device: Literal["cpu", "cuda"]

    def load(self) -> Whisper:
        model = loading.load_model(weights(self.model), catalog.find(self.model))
        return model.to(self.device)

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        own_process()
        # The engine has its own copy of the weights, as in a replica.
        with Engine(self.load()) as engine:
            yield engine
        # A thread that is in PyTorch when Python ends would end the process with an error.
        engine.join()


@contextlib.contextmanager
def official(setup: Setup) -> Iterator[Transcribe]:
    model = setup.load()

    def run(pcm: np.ndarray) -> Result:
        return _of_whisper(
            whisper.transcribe(
                model,
                as_official(pcm),
                fp16=setup.device == "cuda",
                **WHOLE.whisper_options(),
            )
        )

    yield run


@contextlib.contextmanager
def sequential(setup: Setup) -> Iterator[Transcribe]:
    with setup.engine() as engine:
        yield lambda pcm: _of_whisper(engine.transcribe(pcm, **WHOLE.whisper_options()))


@contextlib.contextmanager
def chunked(setup: Setup) -> Iterator[Transcribe]:
    """As a replica does it."""
    with setup.engine() as engine:
        limited, shares = LimitedEngine(engine, math.inf), SlotShares()

        def run(pcm: np.ndarray) -> Result:
            transcript, _ = transcribe(
                limited, shares, pcm, CHUNKED, setup.device, cancelled=lambda: False
            )
            words = [(w.word, w.start, w.end) for w in transcript.words or []]
            chunks = transcript.chunks or []
            return {
                "text": transcript.text,
                "language": transcript.language,
                "words": words,
                "note": f"{len(chunks)} chunks,"
                f" {sum(c.end - c.start for c in chunks):.0f} s in them,"
                f" {transcript.batch_windows:.1f} windows at once",
            }

        yield run


@contextlib.contextmanager
def faster_whisper_batched(setup: Setup) -> Iterator[Transcribe]:
    from faster_whisper import BatchedInferencePipeline

    from benchmarks import faster_whisper_model

    compute_type = "float16" if setup.device == "cuda" else "float32"
    pipeline = BatchedInferencePipeline(
        faster_whisper_model.load(
            setup.load(), setup.device, compute_type, cpu_threads()
        )
    )

    def run(pcm: np.ndarray) -> Result:
        found, about = pipeline.transcribe(
            as_official(pcm), beam_size=5, word_timestamps=True, batch_size=8
        )
        # The segments are a generator, which does its work here.
        segments = list(found)
        words = [(w.word, w.start, w.end) for s in segments for w in s.words or []]
        text = "".join(segment.text for segment in segments)
        return {"text": text, "language": about.language, "words": words}

    yield run


SYSTEMS: dict[str, Callable[[Setup], AbstractContextManager[Transcribe]]] = {
    "official": official,
    "sequential": sequential,
    "chunked": chunked,
    "faster-whisper": faster_whisper_batched,
}
BESIDE = "beside"


def measured(system: str, setup: Setup, pcm: np.ndarray) -> Result:
    """Seconds, the result, and the most memory that the process has had."""
    with SYSTEMS[system](setup) as run:
        run(_short())
        started = time.perf_counter()
        result = run(pcm)
        seconds = time.perf_counter() - started
    return result | {"seconds": seconds, "peak_bytes": _peak_bytes()}


def beside(setup: Setup, pcm: np.ndarray, after_s: float) -> Result:
    """Seconds of short recordings: alone, together, and together beside the long one.

    The long one is ended when the short ones have been transcribed.

    after_s: how long the long one is in work when the short ones come

    Raises SystemExit where the long one has ended before the short ones.
    """
    short = _short()
    shares = SlotShares()
    enough = threading.Event()
    done = [0.0]

    def note(seconds: float, _: float) -> None:
        done[0] = seconds

    with setup.engine() as engine, ThreadPoolExecutor(SHORTS + 1) as pool:
        limited = LimitedEngine(engine, math.inf)

        def one(_: int) -> float:
            started = time.perf_counter()
            transcribe(
                limited, shares, short, WHOLE, setup.device, cancelled=lambda: False
            )
            return time.perf_counter() - started

        one(0)  # warms up
        alone = [one(number) for number in range(_ALONE)]
        together = list(pool.map(one, range(SHORTS)))
        long = pool.submit(
            transcribe,
            limited,
            shares,
            pcm,
            CHUNKED,
            setup.device,
            cancelled=enough.is_set,
            on_progress=note,
        )
        wait([long], after_s)
        before_s = done[0]
        started = time.perf_counter()
        beside_long = list(pool.map(one, range(SHORTS)))
        meanwhile_s = time.perf_counter() - started
        over, after = long.done(), done[0]
        enough.set()
        with contextlib.suppress(TranscriptionCancelled):
            long.result()
    if over:
        sys.exit("the long recording was done before the short ones: too short")
    return {
        "alone": alone,
        "together": together,
        "beside": beside_long,
        "note": f"the long one came from {before_s:.0f} to {after:.0f} s of its audio"
        f" in the {meanwhile_s:.1f} s of the short ones",
    }


def _of_whisper(result: dict[str, Any]) -> Result:
    words = [
        (word["word"], float(word["start"]), float(word["end"]))
        for segment in result["segments"]
        for word in segment["words"]
    ]
    return {"text": result["text"], "language": result["language"], "words": words}


def _short() -> np.ndarray:
    [recording] = recordings.load([SHORT])
    return recording.pcm


def _peak_bytes() -> int:
    # `ru_maxrss` would begin with what the parent had when it started this process.
    found = re.search(
        r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_recording_systems")
    add = parser.add_argument
    add("system", choices=[*SYSTEMS, BESIDE])
    add("recording", type=Path)
    add("--model", default="base")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--after", type=float, default=30)
    arguments = parser.parse_args()
    setup = Setup(arguments.model, arguments.device)
    pcm = np.load(arguments.recording)
    with contextlib.redirect_stdout(sys.stderr):
        if arguments.system == BESIDE:
            result = beside(setup, pcm, arguments.after)
        else:
            result = measured(arguments.system, setup, pcm)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
