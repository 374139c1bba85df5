"""`pip install` that says where it is, instead of a line for each of a hundred packages.

    python -m tools.install -r requirements.txt

The arguments are those of `pip install`, and pip's errors and exit status come through. This module
uses the standard library alone, because it runs before anything is installed.
"""

import re
import subprocess
import sys
import threading
import time

_INTERVAL_S = 5.0
# How pip begins its line for each file that it takes, with the file's size where pip tells it.
_FILE = re.compile(
    r"\s*(?:Downloading|Using cached) (?:\S*/)?([^\s/]+)(?: \(([^)]+)\))?"
)


class Progress:
    """What pip's own lines tell of an installation."""

    def __init__(self) -> None:
        self._packages = 0
        self._now = "looking for packages"

    def read(self, line: str) -> None:
        """Take in a line of pip's output."""
        if found := _FILE.match(line):
            name = found[1].partition("-")[0]
            # Before a package, pip may fetch its metadata alone, a file of a few kilobytes.
            if found[1].endswith(".metadata"):
                self._now = f"looking at {name}"
            else:
                self._packages += 1
                self._now = f"{name} ({found[2]})" if found[2] else name
        elif line.startswith("Installing collected packages"):
            self._now = "unpacking"

    def __str__(self) -> str:
        packages = "package" if self._packages == 1 else "packages"
        return f"{self._packages} {packages}, now {self._now}"


def main() -> int:
    """Run pip; gives its exit status."""
    started = time.monotonic()
    progress, done = Progress(), threading.Event()

    def keep_saying() -> None:
        while not done.wait(_INTERVAL_S):
            seconds = time.monotonic() - started
            print(f"installing: {progress}, {seconds:.0f} s", file=sys.stderr)

    threading.Thread(target=keep_saying, daemon=True).start()
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    with subprocess.Popen(
        [*command, "--no-color", *sys.argv[1:]], stdout=subprocess.PIPE, text=True
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            progress.read(line)
    done.set()
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main())
