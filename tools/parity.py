"""Every recording of a folder through the application and `whisper.transcribe`: are they equal?

    python -m tools.parity FOLDER [--model NAME]

The table goes to stdout, progress to stderr; the exit status is 1 if any recording differs.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from deployments import launch, serve_config
from deployments.audio.decode import decode_audio
from deployments.contract.errors import InvalidAudioError
from deployments.local import loopback
from deployments.local.doors import DOORS, RequestFailed
from tools.official import (
    LONGEST_S,
    as_official,
    assert_equals_official,
    files_in,
    official,
)
from tools.weights import weights, weights_environment


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.parity")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="base")
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = _compare(arguments.folder, arguments.model)
    for name, outcome in outcomes.items():
        print(f"{name:<60} {outcome}")
    equal = sum(outcome == "equal" for outcome in outcomes.values())
    refused = sum(outcome == "refused by both" for outcome in outcomes.values())
    print(f"{equal} equal, {refused} refused by both, of {len(outcomes)}")
    return 0 if equal + refused == len(outcomes) else 1


def _compare(folder: Path, model: str) -> dict[str, str]:
    config, args = serve_config.read_config()
    weights(model)
    os.environ.update(weights_environment())
    files = files_in(folder)
    port = loopback.free_port(config.http_options.host)
    outcomes = {}
    with launch.running_app(config, args, port) as url:
        for number, path in enumerate(files, 1):
            outcome = _outcome(url, path, model)
            outcomes[str(path.relative_to(folder))] = outcome
            print(f"{number} of {len(files)}: {outcome}", file=sys.stderr, flush=True)
    return outcomes


def _outcome(url: str, path: Path, model: str) -> str:
    fields = {"model": model, "word_timestamps": True}
    answer: dict[str, Any] = {}
    failure = ""
    try:
        answer = json.loads(DOORS["native"](str(path), fields).ask(url))
    except RequestFailed as error:
        failure = str(error)
    try:
        with path.open("rb") as file:
            samples = decode_audio(file, LONGEST_S).samples
    except InvalidAudioError:
        refused = failure.startswith(InvalidAudioError.prefix)
        return "refused by both" if refused else "DIFFERENT"
    expected = official(model, as_official(samples), word_timestamps=True)
    try:
        assert_equals_official(answer, expected)
    except (AssertionError, KeyError):
        return "DIFFERENT"
    return "equal"


if __name__ == "__main__":
    sys.exit(main())
