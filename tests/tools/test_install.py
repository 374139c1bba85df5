import os
import subprocess
import sys
from pathlib import Path

from tools.install import Progress

ROOT = Path(__file__).parents[2]


def test_progress_names_the_package_and_its_size() -> None:
    progress = Progress()
    assert str(progress) == "0 packages, now looking for packages"
    for line in (
        "Collecting torch==2.13.0 (from -r requirements.txt (line 3))\n",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl.metadata (29 kB)\n",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (812.4 MB)\n",
    ):
        progress.read(line)
    assert str(progress) == "1 package, now torch (812.4 MB)"
    progress.read("  Using cached numpy-2.4.1-cp311-cp311-linux_x86_64.whl.metadata\n")
    assert str(progress) == "1 package, now looking at numpy"
    progress.read("  Using cached numpy-2.4.1-cp311-cp311-linux_x86_64.whl\n")
    assert str(progress) == "2 packages, now numpy"
    progress.read("Installing collected packages: numpy, torch\n")
    assert str(progress) == "2 packages, now unpacking"


def install(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tools.install", *arguments],
        cwd=ROOT,
        env=os.environ | {"PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pips_own_lines_are_not_shown() -> None:
    done = install("pip")
    assert (done.returncode, done.stdout) == (0, "")
    assert "already satisfied" not in done.stderr


def test_pips_error_and_status_come_through() -> None:
    done = install("no-such-package-anywhere")
    assert done.returncode == 1
    assert "ERROR: No matching distribution found for no-such-package-anywhere" in (
        done.stderr
    )
