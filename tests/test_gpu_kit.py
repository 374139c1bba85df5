"""The GPU measurement from end to end, tiny and on the CPU, with imports from the pack alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks.gpu import chunked_recording, models, prepare
from benchmarks.gpu.lines import Lines, read
from benchmarks.gpu.measure import PHASES, _in_a_process
from benchmarks.gpu.page import page
from benchmarks.gpu.phases import engine_tests
from benchmarks.gpu.phases.fidelity import edits
from benchmarks.gpu.phases.profile import on_the_device
from benchmarks.gpu.run import Run

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
NOT_THERE += ["silero_vad"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "pack"
    command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--tiny"]
    command += ["--out", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the imports fail that would fail on a bare GPU machine."""
    folder = tmp_path_factory.mktemp("bare")
    missing = MISSING.replace("{missing}", str(NOT_THERE))
    (folder / "sitecustomize.py").write_text(missing)
    # On such a machine Numba may be installed, and may refuse the installed NumPy.
    (folder / "numba.py").write_text("raise ImportError('Numba needs another NumPy')")
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def call(
    folder: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.measure", *arguments],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def measure(
    pack: Path,
    environment: dict[str, str],
    out: Path,
    *arguments: str,
    missing: str = "everything was measured",
) -> list[dict[str, Any]]:
    tiny = ["--tiny", "--device", "cpu", "--weights", str(out / "weights")]
    done = call(pack / "1", environment, "--out", str(out), *tiny, *arguments)
    complete = missing == "everything was measured"
    assert done.returncode == (0 if complete else 1), done.stderr
    assert done.stderr.splitlines()[-1].startswith(missing)
    lines = (out / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ends(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["phase"]: line["reason"] for line in lines if "reason" in line}


def report(*folders: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu.report", *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_every_phase_comes_to_its_end_and_the_report_has_all_of_it(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    lines = measure(pack, bare, tmp_path)
    assert ends(lines) == dict.fromkeys(PHASES, "done")
    [tests] = [line for line in lines if line["measure"] == "tests"]
    assert tests["status"] == 0
    assert tests["counts"] == {"passed": 2}
    text = report(tmp_path)
    assert "A rehearsal with tiny models" in text
    assert "Nothing: every part of every phase came to its end." in text
    for told in (
        "fp32 against official",
        "beam 5, 2 at once",
        "cross, turbo",
        "a step",
        "Chunks of a long recording in fp32: 3 of 3",
        "base, beam 5, 3 chunks",
        "turbo, random weights, beam 5, whole",
        "8 at once beside chunks",
    ):
        assert told in text


def test_the_gpu_machine_joins_the_recording_whose_chunks_were_packed(
    pack: Path,
) -> None:
    recording, speech = chunked_recording.read(pack / "1")
    assert {one.name.split(".")[0] for one in speech} == {
        *("audio/jfk", "audio/jfk-phone", "audio/gettysburg", "audio/sonnet")
    }
    assert 600 <= recording.seconds < 620
    assert len(recording.spans) > 20
    assert prepare.spans_of(recording.pcm) == recording.spans


def test_weights_that_come_in_parts_are_whole_after_the_last_one(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    alone = tmp_path / "pack"
    shutil.copytree(pack / "1", alone / "1")
    incomplete = "WeightsMissingError: base's weights are not whole: bring pack/2"
    lines = measure(
        *(alone, bare, tmp_path, "--phases", "speech"),
        missing=f"speech, all of it: {incomplete}",
    )
    assert ends(lines)["speech"].startswith(incomplete)
    for number in ("2", "3"):
        (alone / number).symlink_to(pack / number)
    lines = measure(alone, bare, tmp_path, "--phases", "speech")
    assert ends(lines)["speech"] == "done"


@pytest.mark.parametrize(
    ("folder", "arguments", "reason"),
    [
        ("1", ["--out", ""], "a folder is needed"),
        ("1", ["--out", "{out}", "--phases", "steps, test"], "no phase 'test' among"),
        ("1", ["--out", "/proc/1/here"], "error: /proc/1/here: "),
        ("1", ["--out", "{out}"], "error: this pack has a tiny model"),
        ("root", ["--out", "{out}"], "error: run this in pack/1, which"),
    ],
)
def test_a_call_that_cannot_work_is_refused_before_it_measures(
    pack: Path, tmp_path: Path, folder: str, arguments: list[str], reason: str
) -> None:
    asked = [argument.format(out=tmp_path / "out") for argument in arguments]
    asked += ["--weights", str(tmp_path / "weights")]
    where = ROOT if folder == "root" else pack / folder
    done = call(where, dict(os.environ), *asked)
    assert done.returncode != 0
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert reason in last
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so_once(pack: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--weights", str(tmp_path / "weights"), "--tiny"]
    done = call(pack / "1", dict(os.environ), *out)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: PyTorch finds no GPU")
    assert not (tmp_path / "results.jsonl").exists()


def test_tests_that_could_not_start_are_no_measurement(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(Path(bare["PYTHONPATH"]), folder)
    (folder / "hypothesis.py").write_text("raise ImportError('not on this machine')")
    lines = measure(
        *(pack, bare | {"PYTHONPATH": str(folder)}, tmp_path, "--phases", "tests"),
        missing="tests, tests: RuntimeError: no test ran",
    )
    assert [line["measure"] for line in lines] == ["begin", "failed", "end"]


def test_what_cannot_be_packed_leaves_the_old_pack(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "old").touch()
    command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--tiny"]
    command += ["--out", str(tmp_path), "--manifest", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"error: {tmp_path}/manifest.json: No such file" in done.stderr
    assert (tmp_path / "1" / "old").exists()


def test_a_phase_that_has_no_time_is_left_out_and_said_to_be(
    pack: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    lines = measure(
        *(pack, bare, tmp_path, "--phases", "steps", "--seconds", "0.5"),
        missing="steps, all of it: no time left",
    )
    assert ends(lines) == {"steps": "no time left"}
    text = report(tmp_path)
    assert "- steps: no time left" in text
    assert "- speech: not run, or cut off" in text


def test_what_fails_is_reported_and_costs_nothing_else(tmp_path: Path) -> None:
    run = Run(
        *("steps", torch.device("cpu"), False, tmp_path, tmp_path, tmp_path),
        ends=time.monotonic() + 60,
    )

    def fails() -> None:
        raise LookupError("the reason\nand more")

    run.attempt("one", fails)
    run.attempt("two", lambda: run.report("figure", ms=1))
    run.attempt("three", lambda: run.report("figure", ms=2), seconds=100)
    lines = read([tmp_path])
    assert [line["measure"] for line in lines] == ["failed", "figure", "left out"]
    text = page(Lines(lines))
    assert "- steps, one: failed, LookupError: the reason" in text
    assert "- steps, three: left out, 100 s are needed" in text


def test_a_phase_that_is_killed_says_so() -> None:
    assert _in_a_process(lambda: time.sleep(60), -2.5).startswith("killed after")
    assert _in_a_process(lambda: os._exit(3), 5) == "ended with status 3"


def test_of_a_phase_that_was_measured_again_the_last_call_counts(
    tmp_path: Path,
) -> None:
    calls: list[list[dict[str, Any]]] = [
        [
            {"phase": "steps", "measure": "step"},
            {"phase": "speech", "measure": "texts"},
        ],
        [{"phase": "steps", "measure": "join"}],
        [{"phase": "steps", "measure": "end", "reason": "no time left"}],
    ]
    begin = {"phase": "all", "measure": "begin"}
    lines = [line for call in calls for line in (begin, *call)]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "results.jsonl").write_text(text)
    kept = [line["measure"] for line in read([tmp_path]) if line["phase"] != "all"]
    assert kept == ["texts", "join", "end"]


IN_PARALLEL_AND_CUT_OFF = [
    "============ test session starts ============",
    "tests/engine/test_a.py::test_one[{'x': 1}] ",
    "[gw0] [  1%] PASSED tests/engine/test_a.py::test_one[{'x': 1}] ",
    "[gw1] [  2%] FAILED tests/engine/test_b.py::test_two ",
]
IN_ONE_PROCESS = [
    "tests/engine/test_a.py::test_one PASSED    [ 50%]",
    "tests/engine/test_b.py::test_two ERROR     [100%]",
    "============ short test summary info ============",
    "ERROR tests/engine/test_b.py::test_two - RuntimeError",
]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (IN_PARALLEL_AND_CUT_OFF, {"passed": 1, "failed": 1}),
        (IN_ONE_PROCESS, {"passed": 1, "error": 1}),
    ],
)
def test_outcomes_of_tests_are_counted_even_where_pytest_was_cut_off(
    printed: list[str], expected: dict[str, int]
) -> None:
    counts, failed = engine_tests.outcomes(printed)
    assert counts == expected
    assert failed == ["tests/engine/test_b.py::test_two"]


def test_only_warnings_of_a_wait_count_as_waits() -> None:
    mode = "Synchronization debug mode is a prototype feature and does not yet detect"
    wait = "called a synchronizing CUDA operation (Triggered internally at x.cpp:1)"
    assert engine_tests.waits_in([mode, wait, "something else", wait]) == 2


def test_the_time_of_kernels_is_not_counted_twice() -> None:
    def event(device: Any, count: int, us: float, note: bool = False) -> Any:
        return SimpleNamespace(
            device_type=device,
            count=count,
            self_device_time_total=us,
            is_user_annotation=note,
        )

    events = [
        event(DeviceType.CPU, 7, 30.0),
        event(DeviceType.CUDA, 5, 20.0),
        event(DeviceType.CUDA, 2, 10.0),
        event(DeviceType.CUDA, 1, 99.0, note=True),
    ]
    assert on_the_device(events) == (7, 30.0)


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("a b c", "a b c", 0), ("a b c", "a c", 1), ("a", "b c", 2)],
)
def test_edits_are_the_fewest_that_make_one_text_of_another(
    one: str, other: str, count: int
) -> None:
    assert edits(one.split(), other.split()) == count
    assert edits(other.split(), one.split()) == count


def test_parts_of_another_checkpoint_are_noticed(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    models.Weights(b"a checkpoint in parts", None, "nowhere", tiny=True).split(folders)
    whole = b"".join(path.read_bytes() for f in folders for path in f.glob("*.part-*"))
    assert whole == b"a checkpoint in parts"
    for folder in folders[1:]:
        for path in folder.iterdir():
            path.rename(folders[0] / path.name)
    (folders[0] / "base.pt.part-2").write_bytes(b"another")
    with pytest.raises(models.WeightsMissingError, match="are of different packs"):
        models.base(folders[0], torch.device("cpu"))


# Times counted by hand for 3.0 TB/s and 798 TFLOP/s in half precision, five beams and 600 columns.
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
    # The times counted by hand include the logits, which the report leaves out.
    assert float(cells[3]) == pytest.approx(least_ms, rel=0.08)
    assert float(cells[4].removesuffix("×")) == pytest.approx(10, rel=0.08)
