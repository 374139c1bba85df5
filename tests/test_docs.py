"""The code blocks of README.md and docs/: their syntax here, and in the slow tier their commands.

tests/end_to_end/test_docs.py runs those that call a running application.
"""

import ast
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.support import javascript
from tests.support.markdown import ROOT, Block, all_blocks, blocks_of

BLOCKS = all_blocks()
CHECKED = {"sh", "python", "javascript", "json", "yaml"}
# Nothing can be said of their content.
UNCHECKED = {"", "text", "markdown", "mermaid", "dockerfile", "promql"}
COMMANDS = [block for block in BLOCKS if block.language == "sh"]


def each(blocks: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks, ids=[b.place for b in blocks])


@each(BLOCKS)
def test_a_block_is_well_formed(block: Block) -> None:
    assert block.language in CHECKED | UNCHECKED
    if block.language == "sh":
        done = subprocess.run(
            ["bash", "-n"],
            input=block.text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    elif block.language == "python":
        compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    elif block.language == "javascript":
        javascript.check(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))


@each(COMMANDS)
def test_the_targets_and_modules_of_a_block_exist(block: Block) -> None:
    """Also in blocks that are not run."""
    for command in block.commands():
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            arguments = itertools.takewhile(lambda w: w not in (">", "|", "&"), words)
            done = subprocess.run(
                ["make", "-n", *list(arguments)[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        for module in re.findall(r"python3? -m (\S+)", command):
            if module.split(".")[0] in ("deployments", "tools", "benchmarks", "tests"):
                assert importlib.util.find_spec(module), module


def is_command_of_the_project(block: Block) -> bool:
    """Whether a shell block starts processes of its own, which takes long."""
    return any(
        re.match(r"make\b|\S*python3? -m (?!http\.server)", command)
        for command in block.commands()
    )


@pytest.mark.slow
@each([b for b in COMMANDS if is_command_of_the_project(b) and not b.not_run])
def test_the_commands_of_a_block_run(block: Block) -> None:
    # What make would install is here already: this test runs on it.
    text = re.sub(
        r"\bmake\b", "make -o .venv/installed -o .venv/installed-dev", block.text
    ).replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=text,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PAGE = """# One
<!-- not run: needs Docker -->

```sh
docker run x  # comment
```
text
```python
a = 1
```
## Two
- item
  ```sh
  make \\
    test
  # nothing
  ```
"""


def test_blocks_are_found_with_their_markers() -> None:
    docker, python, make = blocks_of("page.md", PAGE)
    assert (docker.language, docker.not_run, docker.line) == ("sh", "needs Docker", 4)
    assert docker.commands() == ["docker run x"]
    assert (python.not_run, python.section, python.text) == ("", 1, "a = 1\n")
    assert (make.section, make.place) == (2, "page.md:13")
    assert [shlex.split(c) for c in make.commands()] == [["make", "test"]]


def test_a_marker_counts_for_the_next_block_alone() -> None:
    page = "<!-- not run: needs Docker -->\n\ntext\n\n```sh\nls\n```\n"
    [block] = blocks_of("page.md", page)
    assert block.not_run == ""


def test_a_block_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(ValueError, match="page.md:1: the block is not closed"):
        blocks_of("page.md", "```sh\nls\n")


def test_the_readme_has_blocks() -> None:
    assert {"sh", "python"} <= {b.language for b in BLOCKS if b.page == "README.md"}
