"""Fetch and verify weights: `python -m deployments.checkpoints fetch base turbo`."""

import argparse
import logging
import sys

from deployments import catalog
from deployments.checkpoints import fetch
from deployments.contract.errors import CheckpointError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0: every model is there; 1: some could not be fetched; 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.checkpoints",
        description="Fetch and verify Whisper's weights. "
        "Prints the name and the path of each model, one on a line.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="find models, or download them")
    fetching.add_argument("models", nargs="+", metavar="MODEL", help="name or alias")
    names = parser.parse_args(arguments).models

    models = [catalog.find(name) for name in names]
    unknown = [name for name, model in zip(names, models, strict=True) if model is None]
    if unknown:
        valid = ", ".join([*catalog.MODELS, *catalog.ALIASES])
        fetching.error(f"unknown model: {', '.join(unknown)}. Valid names: {valid}")

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    failed = False
    for name in dict.fromkeys(model.name for model in models if model):
        try:
            print(name, fetch(name), flush=True)
        except CheckpointError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
