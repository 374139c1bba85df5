"""From the measurements of `benchmarks.engine` to JSON, a table in Markdown and a picture."""

import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recordings import Recording

OFFICIAL = "official"
FASTER_WHISPER = "faster-whisper"
BATCHED = "faster-whisper batched"

Report = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One system's pass over all recordings, with the results in the order of the recordings."""

    case: str
    system: str
    seconds: float
    results: list[dict[str, Any]]


def machine(threads: int) -> Report:
    """The machine, the date and the installed versions."""
    packages = ("torch", "openai-whisper", "faster-whisper", "ctranslate2")
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version()}
        | {name: installed[name] for name in packages if name in installed},
    }


def summary(chosen: Sequence[Recording], measurements: list[Measurement]) -> Report:
    """Medians, ratios and counts of equal results for each case and system."""
    audio_s = sum(recording.seconds for recording in chosen)
    cases: dict[str, dict[str, list[Measurement]]] = {}
    for measurement in measurements:
        systems = cases.setdefault(measurement.case, {})
        systems.setdefault(measurement.system, []).append(measurement)
    names = [recording.name for recording in chosen]
    return {
        "recordings": names,
        "audio_s": round(audio_s, 1),
        "cases": {
            case: _case_summary(names, audio_s, by_system)
            for case, by_system in cases.items()
        },
    }


def _case_summary(
    names: list[str], audio_s: float, by_system: dict[str, list[Measurement]]
) -> Report:
    medians = {
        system: statistics.median(measurement.seconds for measurement in rounds)
        for system, rounds in by_system.items()
    }
    expected = by_system[OFFICIAL][0].results
    return {
        system: {
            "seconds": [round(measurement.seconds, 3) for measurement in rounds],
            "median_s": round(medians[system], 3),
            "times_real_time": round(audio_s / medians[system], 3),
            # How many times as long the other takes.
            "ratios": {
                other: round(medians[other] / medians[system], 3)
                for other in (OFFICIAL, FASTER_WHISPER, BATCHED)
                if other in medians
            },
            **_equality(names, expected, [m.results for m in rounds]),
        }
        for system, rounds in by_system.items()
    }


def _equality(
    names: list[str],
    expected: list[dict[str, Any]],
    rounds: list[list[dict[str, Any]]],
) -> Report:
    """Count the recordings whose results are equal in every round."""
    texts = [_text(result) for result in expected]
    other_texts = [
        name
        for i, name in enumerate(names)
        if any(_text(results[i]) != texts[i] for results in rounds)
    ]
    equality: Report = {
        "texts_equal": len(names) - len(other_texts),
        "other_texts": other_texts,
        "all_equal": None,
    }
    if "segments" in rounds[0][0]:
        equality["all_equal"] = sum(
            all(_segments(results[i]) == _segments(expected[i]) for results in rounds)
            for i in range(len(names))
        )
    return equality


def _text(result: dict[str, Any]) -> str:
    return str(result["text"]).strip()


def _segments(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            segment["tokens"],
            (segment["start"], segment["end"]),
            [(w["word"], w["start"], w["end"]) for w in segment.get("words", ())],
        )
        for segment in result["segments"]
    ]


def table(report: Report) -> str:
    """Markdown. A ratio above 1 says how many times as fast as the other a system is."""
    count = len(report["recordings"])
    others = list(next(iter(report["cases"].values()))[OFFICIAL]["ratios"])
    head = ["case", "system", "median s", "all rounds, s", "× real time"]
    head += [f"{other} ÷ it" for other in others]
    head += [f"texts equal, of {count}", "all equal"]
    aligned = [":--", ":--"] + ["--:"] * (len(head) - 2)
    rows = [head, aligned]
    for case, systems in report["cases"].items():
        for system, figures in systems.items():
            rows.append([case, system, *_cells(figures)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(figures: Report) -> list[str]:
    all_equal = figures["all_equal"]
    return [
        f"{figures['median_s']:.1f}",
        ", ".join(f"{seconds:.1f}" for seconds in figures["seconds"]),
        f"{figures['times_real_time']:.1f}",
        *(f"{ratio:.2f}" for ratio in figures["ratios"].values()),
        str(figures["texts_equal"]),
        "–" if all_equal is None else str(all_equal),
    ]


def page(report: Report) -> str:
    """The table, with everything that is needed to repeat the measurement."""
    hardware = f"{report['cpu']}, {report['cores']} cores, {report['threads']} threads"
    hardware = ", ".join(filter(None, (report["gpu"], hardware)))
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    what = f"{len(report['recordings'])} recordings, {report['audio_s']:.0f} s of audio"
    return f"""# The engine beside official Whisper and faster-whisper

    {report["command"]}

{report["date"]}; {hardware}; {versions}.
Model {report["model"]}, {_precision(report)}, {what}.
"÷ it": how many times as long the other takes. "Texts equal", "all equal" (tokens and times of
segments, and of words if the case has words): with official, in every round.

{table(report)}
"""


def plot(report: Report, path: Path) -> None:
    """Bars of speed, a panel for each case; the format is the path's suffix."""
    import matplotlib

    matplotlib.use("agg")
    # The same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "benchmark"
    from matplotlib import pyplot

    cases = report["cases"]
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    height = 0.6 + rows * (0.6 + 0.27 * max(map(len, cases.values())))
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, height), sharex=True, squeeze=False
    )
    for panel in panels.flat[len(cases) :]:
        panel.remove()
    for panel, (case, systems) in zip(panels.flat, cases.items(), strict=False):
        speeds = [figures["times_real_time"] for figures in systems.values()]
        bars = panel.barh(list(systems), speeds, color=[_colour(s) for s in systems])
        panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_title(case, loc="left", fontsize=10)
        panel.tick_params(labelsize=8, left=False, labelbottom=True)
        panel.spines[["top", "right", "left"]].set_visible(False)
    where = report["gpu"] or f"{report['cpu']}, {report['threads']} threads"
    what = f"{report['model']}, {_precision(report)}, {where}"
    figure.suptitle(f"{what}: seconds of audio in a second", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _precision(report: Report) -> str:
    return "fp16" if report["gpu"] else "fp32"


def _colour(system: str) -> str:
    if system == OFFICIAL:
        return "#8c8c8c"
    return "#e0913a" if system in (FASTER_WHISPER, BATCHED) else "#2f72b8"


def _cpu() -> str:
    """The processor's name by `lscpu`, since /proc/cpuinfo has none on ARM."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        told = subprocess.run(
            ["lscpu"], check=True, capture_output=True, text=True, env=environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        told = ""
    name = re.search(r"^Model name:\s*(.+)$", told, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
