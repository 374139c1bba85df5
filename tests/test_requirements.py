"""Every package is pinned for each supported Python; the pins hold here and on the public index."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
NAMED = ("requirements.txt", "requirements-dev.txt")
FILES = (
    *NAMED,
    "constraints.txt",
    "benchmarks/requirements.txt",
    "requirements-audit.txt",
)


@pytest.mark.parametrize("file", FILES)
def test_every_requirement_is_pinned_exactly(file: str) -> None:
    for requirement in requirements(file):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), str(requirement)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_package_has_two_pins(version: str) -> None:
    pinned: dict[str, str] = {}
    for file in FILES:
        for name, pin in pins(file, version).items():
            assert pinned.setdefault(name, pin) == pin, name


def test_every_installed_package_has_its_pinned_version() -> None:
    installed = {
        # torch's CPU build adds a local version.
        canonicalize_name(package.name): package.version.partition("+")[0]
        for package in metadata.distributions()
    }
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = pins(NAMED[0], running) | pins(NAMED[1], running)
    assert needed.keys() <= installed.keys()
    pinned = pins("constraints.txt", running) | needed
    found = {name: version for name, version in installed.items() if name in pinned}
    assert found == {name: pinned[name] for name in found}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_pins_resolve_against_the_public_index_alone(version: str) -> None:
    """Without a folder of wheels, PyTorch is the CUDA build, which pins its own parts exactly."""
    files = [str(ROOT / file) for file in NAMED]
    hidden = {"UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL"}
    command = ["uv", "pip", "compile", "--python-version", version, *files]
    command += ["--no-config", "--constraints", str(ROOT / "constraints.txt")]
    # Whisper comes as source, for which the running Python will do.
    command += ["--only-binary", ":all:", "--no-binary", "openai-whisper"]
    command += ["--no-python-downloads"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--no-annotate", "--no-header", *index()],
        env={k: v for k, v in os.environ.items() if k not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resolved = {canonicalize_name(r.name): pin(r) for r in parsed(done.stdout)}
    assert {"torch", "openai-whisper"} < resolved.keys()
    pinned = pins("constraints.txt", version) | pins(NAMED[0], version)
    pinned |= pins(NAMED[1], version)
    assert {name: pinned.get(name) for name in resolved} == resolved


def index() -> list[str]:
    """The option that names the index which pip is told to use instead of PyPI."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    url = os.environ.get("PIP_INDEX_URL", told)
    return ["--default-index", url] if url else []


def parsed(text: str) -> Iterator[Requirement]:
    for line in text.splitlines():
        if line and not line.startswith(("#", "-")):
            yield Requirement(line)


def requirements(file: str) -> Iterator[Requirement]:
    return parsed((ROOT / file).read_text())


def pin(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def pins(file: str, version: str) -> dict[str, str]:
    """What a file pins for a Python version: canonical names and their versions."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    return {
        canonicalize_name(requirement.name): pin(requirement)
        for requirement in requirements(file)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
