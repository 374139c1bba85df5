"""From the lines that `measure` has written to a page and a picture.

    python -m benchmarks.gpu.report FOLDER ... [--out FILE.md] [--plot FILE.svg]

Each FOLDER has a results.jsonl of calls on the same card. If two of them have the same phase, the
later one counts.
The page goes to stdout, or to FILE.md. The picture needs matplotlib.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.lines import Lines, read
from benchmarks.gpu.page import page
from benchmarks.gpu.picture import plot, plottable


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    arguments = parser.parse_args()
    try:
        lines = Lines(read(arguments.folders))
        has_picture = arguments.plot and plottable(lines)
        text = page(lines, arguments.plot.name if has_picture else None)
        if arguments.out:
            arguments.out.write_text(text)
        else:
            print(text, end="")
        if has_picture:
            plot(lines, arguments.plot)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except ImportError as error:
        sys.exit(f"error: {error}; --plot needs benchmarks/requirements.txt")


if __name__ == "__main__":
    main()
