"""The pins resolve against the public index alone, where pip picks torch's CUDA build, and cover everything."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _pip(*arguments: str) -> str:
    # No local wheel folder or other extra source; the index itself stays as configured.
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    hidden = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["PIP_CONFIG_FILE"] = os.devnull
    if index:
        environment.setdefault("PIP_INDEX_URL", index)
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_pins_resolve_against_the_public_index_alone() -> None:
    requirements = str(ROOT / "requirements-dev.txt")
    report = json.loads(
        _pip(
            *("install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--report", "-", "-r", requirements),
        )
    )
    resolved = {
        _normal(item["metadata"]["name"]): item["metadata"]["version"]
        for item in report["install"]
    }
    # torch's CUDA build pins its own parts exactly; everything else is pinned here.
    assert {name for name in resolved if not name.startswith("nvidia-")} <= _pinned()
    assert resolved["torch"] == "2.13.0"


def test_every_requirement_is_pinned_exactly() -> None:
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-")):
                assert re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line), f"{name}: {line}"


def _pinned() -> set[str]:
    lines = "\n".join(
        (ROOT / name).read_text()
        for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt")
    )
    return {_normal(name) for name in re.findall(r"(?m)^([\w.-]+).*==", lines)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
