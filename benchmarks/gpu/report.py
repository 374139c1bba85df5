"""From the lines that `measure` has written to a page and a picture.

    python -m benchmarks.gpu.report FOLDER ... [--out FILE.md] [--plot FILE.svg]

FOLDER: each with a results.jsonl, of calls on the same card; where two have the same phase the later one's counts.
The page goes to stdout, or to FILE.md.
"""

import argparse
from pathlib import Path

from benchmarks.gpu.lines import Lines, read
from benchmarks.gpu.page import page
from benchmarks.gpu.picture import plot


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    arguments = parser.parse_args()
    lines = Lines(read(arguments.folders))
    picture = None
    if arguments.plot:
        plot(lines, arguments.plot)
        picture = arguments.plot.name
    text = page(lines, picture)
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
