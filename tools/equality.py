"""Every recording of a folder through the engine and through `whisper.transcribe`: are they equal?

    python -m tools.equality FOLDER [--model NAME] [--json FILE]

Each recording is transcribed with several sets of options. Eight of these transcriptions are under
way at any time, in shuffled order. Progress goes to stderr and the table to stdout; the exit status
is 1 if anything differs before the first window that sampled.

Official decoding gets the engine's random draws, so that windows that sampled can be compared too.
They are counted apart, because rounding may move a draw from one token to its neighbour.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deployments.audio.decode import decode_audio
from deployments.contract.errors import InvalidAudioError
from deployments.engine import Engine
from tools.official import (
    DEFAULTS,
    LONGEST_S,
    as_official,
    files_in,
    official,
    official_model,
)

LADDER = DEFAULTS["temperature"]
OPTIONS: dict[str, dict[str, Any]] = {
    "beam 5": {"temperature": 0.0, "beam_size": 5},
    "greedy": {"temperature": 0.0, "beam_size": None},
    "ladder with words": {
        "temperature": LADDER,
        "beam_size": 5,
        "best_of": 5,
        "word_timestamps": True,
    },
}
CONCURRENCY = 8
# The outcome of a comparison where only what follows a sampled window differs.
PARTED = "equal up to the first sampled window"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.equality")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recordings = recordings_in(arguments.folder)
    cases = [(name, options) for options in OPTIONS for name in recordings]
    ours = _by_the_engine(arguments.model, recordings, cases)
    rows = []
    for number, (name, options) in enumerate(cases, 1):
        expected = _official(arguments.model, recordings[name], OPTIONS[options])
        row = {"recording": name, "options": options}
        row |= compared(ours[name, options], expected)
        rows.append(row)
        print(f"{number} of {len(cases)}: {row}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    _print_table(rows)
    return 0 if all(row["outcome"].startswith("equal") for row in rows) else 1


def recordings_in(folder: Path) -> dict[str, np.ndarray]:
    """The waveform of each recording, int16 at 16 kHz, by its path in the folder."""
    found = {}
    for path in files_in(folder):
        try:
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = decode_audio(
                    file, LONGEST_S
                ).samples
        except InvalidAudioError:
            print(f"{path.name}: not decodable", file=sys.stderr)
    return found


def _by_the_engine(
    model: str, recordings: dict[str, np.ndarray], cases: list[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, Any]]:
    shuffled = random.Random(0).sample(cases, len(cases))
    started = time.monotonic()

    with (
        Engine(official_model(model)) as engine,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):

        def transcribe(case: tuple[str, str]) -> dict[str, Any]:
            name, options = case
            return engine.transcribe(recordings[name], **OPTIONS[options])

        results = dict(zip(shuffled, pool.map(transcribe, shuffled), strict=True))
    seconds = time.monotonic() - started
    print(f"{len(cases)} by the engine in {seconds:.0f} s", file=sys.stderr)
    return results


def _official(
    model: str, samples: np.ndarray, options: dict[str, Any]
) -> dict[str, Any]:
    return official(model, as_official(samples), **{"best_of": None, **options})


def compared(ours: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """How two results of `whisper.transcribe` compare: `outcome`, and how many segments sampled."""
    sampled = [s["temperature"] > 0 for s in expected["segments"]]
    before = sampled.index(True) if any(sampled) else len(sampled)
    languages = ours["language"] == expected["language"]
    comparison: dict[str, Any] = {
        "sampled_segments": sum(sampled),
        "segments": len(sampled),
    }
    whole = _same(ours["segments"], expected["segments"])
    if languages and whole and ours["text"] == expected["text"]:
        outcome = "equal, sampled windows too" if any(sampled) else "equal"
    elif (
        languages
        and any(sampled)
        and _same(ours["segments"][:before], expected["segments"][:before])
    ):
        outcome = PARTED
    else:
        outcome = "DIFFERENT"
    return comparison | {"outcome": outcome}


def _same(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return len(ours) == len(expected) and all(
        _same_segment(mine, theirs) for mine, theirs in zip(ours, expected, strict=True)
    )


def _same_segment(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    exact = ("seek", "start", "end", "text", "tokens", "temperature")
    near = ("avg_logprob", "no_speech_prob")
    return (
        all(mine[key] == theirs[key] for key in exact)
        and all(abs(mine[key] - theirs[key]) < 1e-3 for key in near)
        and [_word(word) for word in mine.get("words", [])]
        == [_word(word) for word in theirs.get("words", [])]
        and all(
            abs(a["probability"] - b["probability"]) < 1e-3
            for a, b in zip(mine.get("words", []), theirs.get("words", []), strict=True)
        )
    )


def _word(word: dict[str, Any]) -> tuple[str, float, float]:
    return word["word"], word["start"], word["end"]


def _print_table(rows: list[dict[str, Any]]) -> None:
    print("| options | " + " | ".join(_OUTCOMES) + " | of |")
    print("|---" * (len(_OUTCOMES) + 2) + "|")
    for options in OPTIONS:
        outcomes = Counter(r["outcome"] for r in rows if r["options"] == options)
        counts = [str(outcomes[outcome]) for outcome in _OUTCOMES]
        print(f"| {options} | {' | '.join(counts)} | {outcomes.total()} |")


_OUTCOMES = (
    "equal",
    "equal, sampled windows too",
    PARTED,
    "DIFFERENT",
)


if __name__ == "__main__":
    sys.exit(main())
