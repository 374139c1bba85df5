"""The figures of one or several measurements, as `measure` has written them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.floors import Machine, Work
from benchmarks.gpu.models import DIMENSIONS

Line = dict[str, Any]
# Measures that are not figures.
NOTES = ("end", "failed", "left out")
_HALF = 2  # bytes


class Lines:
    """The figures of all folders, and the card's peak rates."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.all = lines
        copies = self.of("environment", "copy")
        products = [
            line
            for line in self.of("environment", "product")
            if line["dtype"] == "torch.float16"
        ]
        self.machine: Machine | None = None
        if copies and products:
            self.machine = Machine(
                products[-1]["flops_per_s"], copies[-1]["bytes_per_s"]
            )

    def of(self, phase: str, measure: str, **fixed: Any) -> list[Line]:
        return [
            line
            for line in self.all
            if (line["phase"], line["measure"]) == (phase, measure)
            and all(line.get(name) == value for name, value in fixed.items())
        ]

    @property
    def rehearsed(self) -> bool:
        """Whether any call used tiny models, whose figures mean nothing."""
        return any(line["tiny"] for line in self.of("all", "begin"))

    def last(self, phase: str, measure: str, **fixed: Any) -> Line:
        """The newest such line, or an empty one."""
        found = self.of(phase, measure, **fixed)
        return found[-1] if found else {}

    def least_ms_of_step(self, line: Line) -> float | None:
        work = self.work(line["model"])
        if work is None:
            return None
        rows = line["windows"] * line["beams"]
        return 1e3 * work.step(line["windows"], rows, line["columns"])

    def work(self, model: str) -> Work | None:
        if self.machine is None:
            return None
        return Work(DIMENSIONS[model], self.machine, _HALF)


def read(folders: Sequence[Path]) -> list[Line]:
    """The lines of all calls in all folders.

    Of a phase that several calls have measured, the last one counts.
    """
    lines: list[Line] = []
    for folder in folders:
        for call in _calls((folder / "results.jsonl").read_text().splitlines()):
            measured = {line["phase"] for line in call if line["measure"] not in NOTES}
            again = measured - {"all"}
            lines = [line for line in lines if line["phase"] not in again] + call
    return lines


def _calls(texts: Sequence[str]) -> list[list[Line]]:
    """The lines of each call: calls with the same folder share a file."""
    calls: list[list[Line]] = []
    for line in map(json.loads, texts):
        if line["measure"] == "begin" or not calls:
            calls.append([])
        calls[-1].append(line)
    return calls


def beams_of(line: Line) -> str:
    return "greedy" if line["beams"] == 1 else f"beam {line['beams']}"
