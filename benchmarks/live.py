"""How soon a stream of events begins: seconds to the first byte, the first segment and the result.

    python -m benchmarks.live [RECORDING] [--rounds N]

This script starts an application and sends the recording by loopback URL to its default model as
POST /transcribe with Accept: text/event-stream, several times one after the other, each time over
a new connection. It fails unless the segments of the stream are those of the result. The table
goes to stdout, progress to stderr.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import requests

from deployments import launch, serve_config
from deployments.local import loopback
from tests.support.http_server import served_file
from tools.weights import weights, weights_environment

RECORDING = Path(__file__).parent.parent / "tests" / "audio" / "gettysburg.wav"


def measure(recording: Path, rounds: int) -> list[dict[str, float]]:
    """The seconds of each round: `audio`, `first byte`, `first segment`, `result`."""
    config, args = serve_config.read_config()
    # The recording is on loopback.
    args = args.model_copy(update={"allow_private_networks": True})
    weights(args.default_model)
    os.environ.update(weights_environment())
    with (
        served_file(recording) as audio,
        launch.running_app(config, args, loopback.free_port("127.0.0.1")) as url,
    ):
        rows = []
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr)
            row = _stream(f"{url}/transcribe", {"audio": audio})
            print(row | {"load": os.getloadavg()[0]}, file=sys.stderr)
            rows.append(row)
        return rows[1:]  # The first round warms up.


def _stream(url: str, request: dict[str, Any]) -> dict[str, float]:
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    segments: list[dict[str, Any]] = []
    headers = {"Accept": "text/event-stream"}
    with requests.post(
        url, json=request, headers=headers, stream=True, timeout=3600
    ) as response:
        response.raise_for_status()
        # Byte by byte, because larger chunks would be held back until they are full.
        for line in response.iter_lines(chunk_size=1):
            since = time.perf_counter() - started
            seconds.setdefault("first byte", since)
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if event["event"] == "segment":
                if not segments:
                    seconds["first segment"] = since
                segments.append(event["segment"])
            else:
                print(f"{since:8.3f} s: {str(event)[:100]}", file=sys.stderr)
            if event["event"] == "error":
                sys.exit(f"error: {event['error']}")
            elif event["event"] == "result":
                seconds["result"] = since
                result = event["result"]
    if segments != result["segments"]:
        sys.exit("error: the segments of the stream are not those of the result")
    return {"audio": result["duration"], "segments": len(segments)} | seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("recording", nargs="?", type=Path, default=RECORDING)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with contextlib.redirect_stdout(sys.stderr):
        rows = measure(arguments.recording, arguments.rounds)
    print(f"{arguments.recording.name}, {platform.machine()}, load before {load:.1f}\n")
    columns = ["audio", "first byte", "first segment", "result"]
    print("| " + " | ".join(f"{name} s" for name in columns) + " | segments |")
    print("|--:" * (len(columns) + 1) + "|")
    for row in rows:
        print(
            "| "
            + " | ".join(f"{row[name]:.2f}" for name in columns)
            + f" | {row['segments']:.0f} |"
        )


if __name__ == "__main__":
    main()
