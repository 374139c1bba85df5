"""Every package is pinned for each supported Python; the pins hold here and on the public index."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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

# pip reads environment markers for the Python that runs it, also where it resolves for another one.
PIP_FOR_ANOTHER_PYTHON = """
import sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers

version = sys.argv.pop(1)
here = markers.default_environment()
there = here | {"python_version": version, "python_full_version": version + ".0"}
markers.default_environment = lambda: there
sys.exit(main(sys.argv[1:]))
"""


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


@pytest.fixture(scope="module")
def resolved_packages(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[dict[str, Any]]]:
    """What pip takes for each Python, by its metadata. The three run side by side.

    Without a local wheel folder, pip picks torch's CUDA build, whose metadata pins its own parts
    exactly.
    """
    lines = [str(r) for file in NAMED for r in requirements(file)]
    # Whisper comes as source, which pip can build for the running Python only.
    lines = [line for line in lines if not line.startswith("openai-whisper")]
    lines += metadata.requires("openai-whisper") or []

    def resolved(version: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(version)
        (folder / "all.txt").write_text("\n".join(lines))
        report = pip_for(
            version,
            *("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"),
            *("--only-binary=:all:", "--target", str(folder)),
            # pip would compare with the running Python; the test does it right.
            *("--python-version", version, "--ignore-requires-python"),
            *("-c", str(ROOT / "constraints.txt"), "-r", str(folder / "all.txt")),
        )
        return [item["metadata"] for item in json.loads(report)["install"]]

    with ThreadPoolExecutor(len(VERSIONS)) as threads:
        return dict(zip(VERSIONS, threads.map(resolved, VERSIONS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_pins_resolve_against_the_public_index_alone(
    version: str, resolved_packages: dict[str, list[dict[str, Any]]]
) -> None:
    packages = resolved_packages[version]
    for package in packages:
        supported = SpecifierSet(package.get("requires_python", ""))
        assert f"{version}.1" in supported, package["name"]
    resolved = {canonicalize_name(p["name"]): p["version"] for p in packages}
    pinned = pins("constraints.txt", version) | pins(NAMED[0], version)
    pinned |= pins(NAMED[1], version)
    assert {name: pinned.get(name) for name in resolved} == resolved


def requirements(file: str) -> Iterator[Requirement]:
    for line in (ROOT / file).read_text().splitlines():
        if line and not line.startswith(("#", "-")):
            yield Requirement(line)


def pins(file: str, version: str) -> dict[str, str]:
    """What a file pins for a Python version: canonical names and their versions."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix(
            "=="
        )
        for requirement in requirements(file)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


def pip_for(version: str, *arguments: str) -> str:
    """Run pip without a local wheel folder or extra source; the index stays as configured."""
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
        [sys.executable, "-c", PIP_FOR_ANOTHER_PYTHON, version, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
