"""The packages and modules of the engine import one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deployments.engine

ROOT = Path(deployments.engine.__file__).parent
NAME = "deployments.engine"
# Each may import from those before it, and from itself.
ORDER = [
    "model",
    "decoding",
    "upstream",
    "model_runner",
    "tasks",
    "backoff",
    "queues",
    "scheduler",
    "session",
    "engine",
    "__init__",
]
FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_room_of_the_engine_has_its_place_in_the_order() -> None:
    assert {room_of(path) for path in FILES} == {*ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_rooms_before_its_own(path: Path) -> None:
    allowed = ORDER[: ORDER.index(room_of(path)) + 1]
    for name in imported(path):
        if name.startswith("deployments"):
            assert name.startswith(f"{NAME}."), f"{name} is outside the engine"
            assert name.removeprefix(f"{NAME}.").split(".")[0] in allowed, name


def test_the_engine_knows_nothing_of_servers_or_files() -> None:
    packages = {name.split(".")[0] for path in FILES for name in imported(path)}
    assert packages.isdisjoint(
        {"ray", "fastapi", "starlette", "requests", "aiohttp", "av", "pydantic"}
    )
