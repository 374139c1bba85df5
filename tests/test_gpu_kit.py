"""The GPU measurement from end to end, tiny and on the CPU, where nothing but the pack may be imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import models
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.measure import PHASES
from benchmarks.gpu.page import page

ROOT = Path(__file__).parent.parent
# A bare GPU machine has none of these, and none of the project's other modules.
MISSING = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError("not on a bare machine: " + name)

sys.meta_path.insert(0, Missing())
"""
NOT_THERE = ["ray", "av", "pydantic", "fastapi", "starlette", "runpod", "aiohttp"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "pack"
    command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--tiny"]
    command += ["--out", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which imports fail that would fail there."""
    folder = tmp_path_factory.mktemp("bare")
    missing = MISSING.replace("{missing}", str(NOT_THERE))
    (folder / "sitecustomize.py").write_text(missing)
    # There, but it refuses the NumPy beside it.
    (folder / "numba.py").write_text("raise ImportError('Numba needs another NumPy')")
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def measure(
    pack: Path, environment: dict[str, str], out: Path, *arguments: str
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu.measure", "--tiny"]
    command += ["--device", "cpu", "--out", str(out), "--weights", str(out / "weights")]
    done = subprocess.run(
        [*command, *arguments],
        cwd=pack / "1",
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (out / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ends(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["phase"]: line["reason"] for line in lines if "reason" in line}


def test_every_phase_comes_to_its_end_and_the_report_tells_all_of_it(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    lines = measure(pack, bare, tmp_path)
    assert ends(lines) == dict.fromkeys(PHASES, "done")
    [tests] = [line for line in lines if line["measure"] == "tests"]
    assert tests["status"] == 0
    assert tests["counts"]["tests"] > 0
    command = [sys.executable, "-m", "benchmarks.gpu.report", str(tmp_path)]
    page = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "A rehearsal with tiny models" in page
    assert "Nothing: every phase came to its end." in page
    for told in (
        "fp32 against official",
        "beam 5, 2 at once",
        "cross, turbo",
        "a step",
    ):
        assert told in page


def test_weights_that_come_in_parts_are_whole_after_the_last_one(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    alone = tmp_path / "pack"
    shutil.copytree(pack / "1", alone / "1")
    lines = measure(alone, bare, tmp_path, "--phases", "speech")
    assert ends(lines)["speech"].startswith("WeightsMissingError: there is no ")
    for number in ("2", "3"):
        (alone / number).symlink_to(pack / number)
    lines = measure(alone, bare, tmp_path, "--phases", "speech")
    assert ends(lines)["speech"] == "done"


def test_a_phase_that_has_no_time_is_left_out_and_said_to_be(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    lines = measure(pack, bare, tmp_path, "--phases", "steps", "--seconds", "0.5")
    assert ends(lines) == {"steps": "no time left"}


def test_parts_of_another_checkpoint_are_noticed(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    models.split(b"a checkpoint in parts", folders, None)
    whole = b"".join(path.read_bytes() for f in folders for path in f.glob("*.part-*"))
    assert whole == b"a checkpoint in parts"
    for folder in folders[1:]:
        for path in folder.iterdir():
            path.rename(folders[0] / path.name)
    (folders[0] / "base.pt.part-2").write_bytes(b"another")
    with pytest.raises(models.WeightsMissingError, match="do not give the checkpoint"):
        models.base(folders[0], torch.device("cpu"))


# Counted by hand for 3.0 TB/s and 798 TFLOP/s in half precision, five beams and 600 columns.
@pytest.mark.parametrize(
    ("model", "windows", "least_ms"),
    [
        ("base", 32, 0.33),
        ("turbo", 8, 0.226),
        ("medium", 1, 0.34),
        ("large-v3", 32, 4.23),
    ],
)
def test_the_report_sets_a_step_beside_what_the_card_allows(
    model: str, windows: int, least_ms: float
) -> None:
    step = {"phase": "steps", "measure": "step", "model": model, "windows": windows}
    step |= {"beams": 5, "columns": 600, "ms": 10 * least_ms, "ms_of_others": None}
    copied: dict[str, Any] = {"phase": "environment", "measure": "copy"}
    product: dict[str, Any] = {"phase": "environment", "measure": "product"}
    lines = Lines(
        [
            copied | {"bytes_per_s": 3.0e12},
            product | {"dtype": "torch.float16", "flops_per_s": 798e12},
            product | {"dtype": "torch.float32", "flops_per_s": 50e12},
            step,
        ]
    )
    [row] = [line for line in page(lines).splitlines() if line.startswith(f"| {model}")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # Whoever counted it counted the logits too.
    assert float(cells[3]) == pytest.approx(least_ms, rel=0.08)
    assert float(cells[4].removesuffix("×")) == pytest.approx(10, rel=0.08)
