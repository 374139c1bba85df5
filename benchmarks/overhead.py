"""What the service adds to a transcription: the time of POST /transcribe less `timings.transcribe`.

    python -m benchmarks.overhead [--requests N] [--json]

This script starts an application and sends tests/audio/jfk.flac (11 s, stereo, 44.1 kHz) by
loopback URL to its default model, one request after another. Download and decoding are included.
The table goes to stdout, progress to stderr.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import requests

from deployments import launch, serve_config
from deployments.local import loopback
from tests.support.http_server import served_file
from tools.weights import weights, weights_environment

RECORDING = Path(__file__).parent.parent / "tests" / "audio" / "jfk.flac"
STAGES = ("download", "decode", "model_start", "queue")


def measure(count: int) -> list[dict[str, float]]:
    """The overhead of each request in milliseconds: `total`, by stage, and `rest` (HTTP, Ray)."""
    config, args = serve_config.read_config()
    # The recording is on loopback.
    args = args.model_copy(update={"allow_private_networks": True})
    weights(args.default_model)
    os.environ.update(weights_environment())
    rows = []
    with (
        served_file(RECORDING) as audio,
        launch.running_app(config, args, loopback.free_port("127.0.0.1")) as url,
    ):
        for number in range(count + 1):
            started = time.perf_counter()
            request = {"audio": audio, "beam_size": None}
            response = requests.post(f"{url}/transcribe", json=request, timeout=600)
            wall = time.perf_counter() - started
            response.raise_for_status()
            timings = response.json()["timings"]
            row = {"total": wall - timings["transcribe"]}
            row |= {stage: timings[stage] for stage in STAGES}
            row["rest"] = row["total"] - sum(timings[stage] for stage in STAGES)
            print(f"request {number} of {count}", file=sys.stderr)
            if number > 0:  # The first request warms up.
                rows.append({key: 1000 * value for key, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        rows = measure(arguments.requests)
    columns = {key: sorted(row[key] for row in rows) for key in rows[0]}
    summary = {
        key: {"median_ms": statistics.median(column), "max_ms": column[-1]}
        for key, column in columns.items()
    }
    if arguments.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps({"requests": len(rows), **machine, "overhead": summary}))
        return
    print(f"{'stage':<12} {'median ms':>10} {'max ms':>8}")
    for key, values in summary.items():
        print(f"{key:<12} {values['median_ms']:>10.1f} {values['max_ms']:>8.1f}")


if __name__ == "__main__":
    main()
