"""See the package's docstring."""

import logging
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    sys.exit(
        "atheris is not installed: pip install atheris==3.0.0 (Python 3.11 to 3.13)"
    )

with atheris.instrument_imports(include=["deployments", "python_multipart"]):
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS


def main() -> None:
    # Each refusal is a line of the log.
    logging.disable()
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [options]")
    with tempfile.TemporaryDirectory() as seeds:
        for number, seed in enumerate(SEEDS[name]):
            Path(seeds, str(number)).write_bytes(seed)
        # libFuzzer writes what it finds into the first folder.
        folders = [option for option in options if not option.startswith("-")]
        found = [] if folders else [tempfile.mkdtemp(prefix=f"fuzz-{name}-")]
        atheris.Setup([sys.argv[0], *options, *found, seeds], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
