"""What requests take of the engine's time, beside the limit of `max_decode_s_per_audio_s`.

    python -m benchmarks.decode_limit [--model base] [--limit SECONDS]

Honest requests run without a limit: one by one, eight at once, and two whose every temperature
fails. Then a request that is made to decode for as long as it can runs with a limit, and an honest
one beside it. The table goes to stdout.
"""

import argparse
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deployments import catalog
from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio
from deployments.config import AppArgs
from deployments.contract.options import TranscriptionOptions
from deployments.engine import DecodingLimitExceeded, Engine, Usage
from deployments.replica.loading import load_model
from tools.weights import weights

AUDIO = Path(__file__).parent.parent / "tests" / "audio"
# No result is good enough, so that a window is decoded at every temperature.
FAILING: dict[str, Any] = {"logprob_threshold": 10.0, "no_speech_threshold": None}


def worst(model: catalog.OfficialModel) -> dict[str, Any]:
    """Windows advance by 0.02 s, each with ten beams or samples at eleven temperatures."""
    timestamps = range(model.n_vocab - 1501, model.n_vocab)
    return FAILING | {
        "suppress_tokens": [-1, *timestamps[2:]],
        "temperature_increment_on_fallback": 0.1,
        "beam_size": 10,
        "best_of": 10,
        "patience": 10.0,
        "initial_prompt": "so " * 300,
        "carry_initial_prompt": True,
    }


class Table:
    """Runs requests and prints a row for each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        print("| request | audio s | engine s | per second | wall s |")
        print("|---|--:|--:|--:|--:|", flush=True)

    def run(
        self, name: str, audio: np.ndarray, limit: float = math.inf, **fields: Any
    ) -> None:
        seconds = len(audio) / SAMPLE_RATE
        usages: list[Usage] = []
        started = time.monotonic()
        try:
            self._engine.transcribe(
                audio,
                on_usage=usages.append,
                max_busy_s=limit,
                **TranscriptionOptions(**fields).whisper_options(),
            )
            busy = usages[0].busy_s
            used = f"{busy:.1f} | {busy / max(seconds, 30):.2f}"
        except DecodingLimitExceeded:
            used = f"ended at {limit:g} | "
        wall = time.monotonic() - started
        print(f"| {name} | {seconds:.1f} | {used} | {wall:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_limit")
    parser.add_argument("--model", default="base")
    parser.add_argument("--limit", type=float, help="seconds; by default the model's")
    arguments = parser.parse_args()
    args = AppArgs()
    model = args.model(arguments.model)
    assert model.official is not None
    with (AUDIO / "jfk.flac").open("rb") as file:
        speech = decode_audio(file, 60).samples
    noise = np.random.default_rng(0).integers(-3000, 3000, 30 * SAMPLE_RATE, np.int16)
    limit = arguments.limit or 30 * args.max_decode_rate(model)
    with Engine(load_model(weights(model.name), model.official)) as engine:
        table = Table(engine)
        table.run("speech", speech)
        table.run("speech, words", speech, word_timestamps=True)
        table.run("speech, all temperatures fail", speech, **FAILING)
        table.run("noise, all temperatures fail", noise, **FAILING)
        with ThreadPoolExecutor(8) as threads:
            for _ in range(8):
                threads.submit(table.run, "speech, words, eight at once", speech)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(
                table.run, "the worst", speech, limit, **worst(model.official)
            )
            table.run("speech, beside the worst", speech)
            table.run("speech, beside the worst", speech)
        # Python must not end while the engine's thread is in the middle of a step.
        engine.close()
        engine.join()
    load = ", ".join(f"{load:.0f}" for load in os.getloadavg())
    print(f"\n{model.name}, {os.cpu_count()} cores, load averages {load}")


if __name__ == "__main__":
    main()
