"""One recording of an hour: official Whisper, the engine, the engine in chunks, faster-whisper.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.long_recording --manifest PATH [--minutes 60] [--official-minutes 5]
        [--model NAME] [--device cpu|cuda] [--only SYSTEM,...] [--results FOLDER]

The recording is joined from the manifest's English speech whose exact words are known, with pauses
of 0.3 to 3 s, and with stretches of 10 to 60 s of music, noise or silence between, which are a
fifth of it. All systems have the same weights, beam search with 5 beams, and word timestamps; the
language is detected. `chunked` is what the service does for `chunking_strategy` "auto",
`faster-whisper` its `BatchedInferencePipeline` with voice activity detection, eight pieces at once.
Official Whisper transcribes the beginning of the recording. Each system runs in a process of its
own. `beside` is the time of eight recordings of 11 s that are given together to an engine that has
had the long recording in chunks for 30 s, and their time without it.

Word errors are counted after Whisper's own normalizer for English. An invented word is one whose
middle lies in a stretch without speech, half a second or more from its ends.

With --results, what each system gave is kept in the folder, and --only measures some systems anew.
The report goes to stdout, progress to stderr.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from whisper.normalizers import EnglishTextNormalizer

from benchmarks import engine_report
from benchmarks.long_recording_systems import BESIDE, SHORTS, SYSTEMS
from deployments import catalog
from deployments.audio import SAMPLE_RATE
from deployments.audio.speech import Span
from deployments.cpus import THREADS_VARIABLE, available_cpus
from tools.joined import Joined, entries_of, is_speech, join, sounds_of, utterances_of

_SPEECHLESS = 0.2
# Word times are not exact to more than this, so the edges of a stretch do not count.
_EDGE_S = 0.5
_SEED = 0
_MIB = 1 << 20

Result = dict[str, Any]


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    recording = _recording(parser, arguments)
    part = recording.beginning(60 * arguments.official_minutes)
    if not part.spoken:
        parser.error("--official-minutes: too short for an utterance")
    with tempfile.TemporaryDirectory(prefix="long-recording-") as folder:
        results = _results(arguments, recording, part, Path(folder))
    print(page(arguments, recording, part, results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_recording")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, help="file, or its folder")
    add("--minutes", type=float, default=60)
    add("--official-minutes", type=float, default=5)
    add("--model", default="base", choices=list(catalog.MODELS), metavar="NAME")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=int, default=available_cpus(), help="of the CPU")
    names = [*SYSTEMS, BESIDE]
    add("--only", type=lambda text: _names(text, names), default=names)
    add("--after", type=float, default=30, help="seconds before the short ones come")
    add("--results", type=Path, metavar="FOLDER")
    return parser


def _names(text: str, known: list[str]) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"not all of {','.join(known)}: {text}")
    return names


def _recording(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Joined:
    try:
        entries = entries_of(arguments.manifest)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    spoken = [
        entry
        for entry in entries
        if is_speech(entry)
        and entry["language"] == "en"
        and entry.get("score")
        and entry.get("reference")
    ]
    if not spoken:
        parser.error("the manifest lists no English speech with exact references")
    try:
        return join(
            utterances_of(spoken),
            sounds_of(entries),
            60 * arguments.minutes,
            speechless=_SPEECHLESS,
            seed=_SEED,
        )
    except ValueError as error:
        parser.error(f"--minutes: {error}")


def _results(
    arguments: argparse.Namespace, recording: Joined, part: Joined, folder: Path
) -> dict[str, Result]:
    """Of each system: measured now, or kept of an earlier run on the same recording."""
    results = {}
    for name in [*SYSTEMS, BESIDE]:
        joined = part if name == "official" else recording
        about = {
            "model": arguments.model,
            "device": arguments.device,
            "threads": arguments.threads,
            "seconds": joined.seconds,
        }
        kept = arguments.results and arguments.results / f"{name}.json"
        if name in arguments.only:
            results[name] = _measured(arguments, name, joined, folder)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps({"about": about} | results[name]))
        elif kept and kept.exists():
            found = json.loads(kept.read_text())
            if found.pop("about") == about:
                results[name] = found
    return results


def _measured(
    arguments: argparse.Namespace, name: str, joined: Joined, folder: Path
) -> Result:
    print(f"{name}: {joined.seconds:.0f} s of audio", file=sys.stderr, flush=True)
    file = folder / "recording.npy"
    np.save(file, joined.pcm)
    command = [sys.executable, "-m", "benchmarks.long_recording_systems"]
    command += [name, str(file), "--model", arguments.model]
    command += ["--device", arguments.device, "--after", str(arguments.after)]
    threads = str(arguments.threads)
    environment = {THREADS_VARIABLE: threads, "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name} failed")
    result: Result = json.loads(done.stdout)
    if "seconds" in result:
        print(f"{name}: {result['seconds']:.1f} s", file=sys.stderr, flush=True)
    return result


def invented_words(
    words: Sequence[tuple[str, float, float]], speechless: Sequence[Span]
) -> list[str]:
    """The words whose middle lies in a stretch without speech, away from its edges."""
    return [
        word
        for word, start, end in words
        if any(_within((start + end) / 2, span) for span in speechless)
    ]


def _within(second: float, span: Span) -> bool:
    start, end = span.start / SAMPLE_RATE, span.end / SAMPLE_RATE
    return start + _EDGE_S <= second <= end - _EDGE_S


def counted_s(speechless: Sequence[Span]) -> float:
    """Seconds in which a word counts as invented."""
    return sum(len(span) / SAMPLE_RATE - 2 * _EDGE_S for span in speechless)


def word_error_rate(joined: Joined, text: str) -> float:
    import jiwer

    normalized = EnglishTextNormalizer()
    # One by one: the normalizer would read the last number of one and the first of the next as one.
    reference = " ".join(normalized(one.text) for one in joined.spoken)
    return float(jiwer.wer(reference, normalized(text)))


def page(
    arguments: argparse.Namespace,
    recording: Joined,
    part: Joined,
    results: dict[str, Result],
) -> str:
    """All figures in Markdown, with everything that is needed to repeat the measurement."""
    about = engine_report.machine(arguments.threads)
    hardware = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads"
    if arguments.device == "cuda":
        hardware = f"{about['gpu']}, {hardware}"
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    precision = "fp16" if arguments.device == "cuda" else "fp32"
    command = ["python", "-m", "benchmarks.long_recording", *sys.argv[1:]]
    speechless = sum(map(len, recording.speechless)) / SAMPLE_RATE
    stretches = len(recording.speechless)
    what = (
        f"{recording.seconds:.0f} s of audio: {len(recording.spoken)} utterances,"
        f" {stretches} stretches of music, noise and silence ({speechless:.0f} s)"
    )
    lines = [
        "# One long recording",
        "",
        f"    {shlex.join(command)}",
        "",
        f"{about['date']}; {hardware}; {versions}.",
        f"Model {arguments.model}, {precision}, beam 5 with words. {what}.",
        "",
        *_table(recording, part, results),
    ]
    if "official" in results:
        extrapolated = (
            f"Official Whisper transcribed the first {part.seconds:.0f} s. Its seconds and ratios"
            " are extrapolated from there to the whole; its word error rate, invented words and"
            " memory are those of this part alone."
        )
        lines += ["", extrapolated]
    for name, result in results.items():
        if result.get("language", "en") != "en":
            lines += ["", f"{name} detected the language '{result['language']}'."]
        if "note" in result and name != BESIDE:
            lines += ["", f"{name}: {result['note']}."]
    if BESIDE in results:
        lines += ["", *_beside(results[BESIDE])]
    return "\n".join(lines)


def _table(recording: Joined, part: Joined, results: dict[str, Result]) -> list[str]:
    head = ["system", "seconds", "audio s/s", "official ÷ it", "sequential ÷ it"]
    head += ["word error rate", "invented words", "a minute without speech", "peak MiB"]
    rows = [head, [":--"] + ["--:"] * (len(head) - 1)]
    whole_s = {
        name: result["seconds"]
        * (recording.seconds / part.seconds if name == "official" else 1)
        for name, result in results.items()
        if name in SYSTEMS
    }
    for name, seconds in whole_s.items():
        result = results[name]
        joined = part if name == "official" else recording
        told = f"{seconds:.1f}"
        if name == "official":
            told += f" (extrapolated from {result['seconds']:.1f})"
        ratios = [
            f"{whole_s[other] / seconds:.2f}" if other in whole_s else "–"
            for other in ("official", "sequential")
        ]
        invented = len(invented_words(result["words"], joined.speechless))
        minutes = counted_s(joined.speechless) / 60
        rows.append(
            [
                name,
                told,
                f"{recording.seconds / seconds:.1f}",
                *ratios,
                f"{word_error_rate(joined, result['text']):.1%}",
                str(invented),
                f"{invented / minutes:.1f}" if minutes else "–",
                f"{result['peak_bytes'] / _MIB:.0f}",
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _beside(result: Result) -> list[str]:
    rows = [
        ["recordings of 11 s", "median s", "p95 s"],
        [":--", "--:", "--:"],
    ]
    names = {
        "alone": "one alone",
        "together": f"{SHORTS} together",
        "beside": f"{SHORTS} together beside the long one in chunks",
    }
    for key, name in names.items():
        median, p95 = np.percentile(result[key], [50, 95])
        rows.append([name, f"{median:.2f}", f"{p95:.2f}"])
    table = [f"| {' | '.join(row)} |" for row in rows]
    return [*table, "", f"In the last row, {result['note']}."]


if __name__ == "__main__":
    main()
