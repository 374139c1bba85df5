"""The two tiers of tests: `make test` runs what is not marked slow, `make test-slow` the rest.

The marks `slow` and `not slow` leave no test out. These tests hold what could still hide one.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests").rglob("*.py"))
# `make image-test` runs it: it needs an image, which buildah builds.
BY_HAND = {"image/check_image.py"}


def commands_of(target: str) -> str:
    """The recipe of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found, f"no target {target}"
    return found[1]


def test_each_tier_has_a_command() -> None:
    assert re.search(r'pytest .*-m "not slow"', commands_of("test"))
    assert re.search(r"pytest .*-m slow\b", commands_of("test-slow"))


def test_continuous_integration_runs_both() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make .*\btest\b(?!-)", script, re.MULTILINE)
    assert re.search(r"^make .*\btest-slow\b", script, re.MULTILINE)


def test_every_file_with_tests_is_collected() -> None:
    for path in FILES:
        name = path.relative_to(ROOT / "tests").as_posix()
        if any(holds_tests(node) for node in ast.parse(path.read_text()).body):
            assert path.name.startswith("test_") or name in BY_HAND, name


def holds_tests(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    return node.name.lower().startswith("test")


def unconditional_skips(source: str) -> list[int]:
    """Lines that leave a test out whatever the machine: marks `skip`, and `xfail` that may pass."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call | ast.Attribute):
            continue
        text = ast.unparse(node)
        skips = re.fullmatch(r"(pytest\.)?mark\.skip", text)
        may_pass = re.match(r"(pytest\.)?mark\.xfail\(", text)
        if skips or (may_pass and "strict=True" not in text):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_no_test_is_always_skipped(path: Path) -> None:
    assert unconditional_skips(path.read_text()) == []


def test_a_mark_that_hides_a_test_is_found() -> None:
    assert unconditional_skips("@pytest.mark.skip\ndef test(): ...") == [1]
    assert unconditional_skips("@pytest.mark.skip(reason='x')\ndef test(): ...") == [1]
    assert unconditional_skips("m = pytest.mark.xfail(reason='x')") == [1]
    assert unconditional_skips("m = pytest.mark.xfail(strict=True)") == []
    assert unconditional_skips("m = pytest.mark.skipif(gpu, reason='x')") == []
