"""The code blocks of the project's Markdown pages.

A comment before a block, `<!-- not run: needs Docker -->`, says that it cannot run where tests run,
and why. All other blocks of Python and shell are run.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*([\w+-]*)\s*$")
_MARKER = re.compile(r"^\s*<!-- not run: (\S.*) -->\s*$")
_HEADING = re.compile(r"^#+ (.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    section: the number of the heading above it on its page, from 0
    line: the number of its opening fence, from 1
    not_run: why it is not run; empty: it is
    """

    page: str
    section: int
    line: int
    language: str
    text: str
    not_run: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s)#.*$", "", line) for line in joined.splitlines())
        return [line.strip() for line in lines if line.strip()]


def blocks_of(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page. Raises ValueError for one that is not closed."""
    found: list[Block] = []
    lines = text.splitlines()
    section, not_run, number = 0, "", 0
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            _, ticks, language = fence.groups()
            end = number + 1
            while end < len(lines) and lines[end].strip() != ticks:
                end += 1
            if end == len(lines):
                raise ValueError(f"{page}:{number + 1}: the block is not closed")
            body = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
            found.append(Block(page, section, number + 1, language, body, not_run))
            not_run, number = "", end
        elif marker := _MARKER.match(line):
            not_run = marker[1]
        elif _HEADING.match(line):
            section += 1
        elif line.strip():
            not_run = ""
        number += 1
    return found


def all_blocks() -> list[Block]:
    return [
        block
        for path in PAGES
        for block in blocks_of(str(path.relative_to(ROOT)), path.read_text())
    ]
