"""What an overload costs: those who are refused, those who are not, and memory.

    python -m benchmarks.overload flood [--clients N] [--seconds S] [--pause S]
    python -m benchmarks.overload memory [--files N] [--hours H]

`flood`: one API key sends 2 s of speech from many clients, each of which sends again as soon as it
is answered, and after a pause where it was refused: as long as `Retry-After` says, or less. Another
key sends the same file, one request after the other: alone, and then beside the flood. 32 requests
may wait.

`memory`: many FLAC files of hours of silence are uploaded at once. The first minute is decoded,
but the spectrogram is that of the whole file. Each second, the memory of the Router and of
the model's replica is read: pages of their own (anonymous), mapped pages of files, and mapped
shared memory; the latter two count in each process by their shares (PSS).

The service runs tiny.en. The tables go to stdout, progress to stderr.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import requests

from deployments import keys, launch, serve_config
from deployments.audio import SAMPLE_RATE
from deployments.config import ModelArgs
from deployments.local import loopback
from tools.weights import weights, weights_environment

MODEL = "tiny.en"
_RECORDING = Path(__file__).parent.parent / "deployments" / "api" / "example.ogg"
_GREEDY = {"beam_size": "null", "temperature_increment_on_fallback": "0"}
_WAITING = 32
_PROCESSES = {
    "Router": "ray::ServeReplica:whisper:Router",
    "replica": f"ray::ServeReplica:whisper:whisper-{MODEL}",
}


@contextlib.contextmanager
def service(**limits: Any) -> Iterator[str]:
    """The URL of a service of one model. limits: options of the application"""
    config, args = serve_config.read_config()
    args = args.model_copy(
        update={"models": [ModelArgs(name=MODEL)], "default_model": MODEL} | limits
    )
    weights(MODEL)
    os.environ.update(weights_environment())
    with launch.running_app(config, args, loopback.free_port("127.0.0.1")) as url:
        yield url


@dataclass
class Sent:
    """The requests of one key: seconds of those that succeeded, and of those that did not.

    queue: `timings.queue` of those that succeeded
    """

    succeeded: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    retry_after: list[int] = field(default_factory=list)

    def send(self, url: str, key: str) -> int:
        started = time.perf_counter()
        with _RECORDING.open("rb") as file:
            response = requests.post(
                f"{url}/transcribe",
                files={"file": file},
                data=_GREEDY,
                headers={"Authorization": f"Bearer {key}"},
                timeout=600,
            )
        seconds = time.perf_counter() - started
        self.statuses[response.status_code] += 1
        if response.status_code == 200:
            self.succeeded.append(seconds)
            self.queue.append(response.json()["timings"]["queue"])
        else:
            self.refused.append(seconds)
            self.retry_after.append(int(response.headers["Retry-After"]))
        return response.status_code


def flood(clients: int, seconds: float, pause_s: float) -> dict[str, Sent]:
    """What was sent by the calm key alone, by the calm key beside the flood, and by the flood.

    pause_s: the longest that a client of the flood waits after it was refused
    """
    calm_key, calm_line = keys.new_key("calm")
    flood_key, flood_line = keys.new_key("flood")
    os.environ[keys.KEYS] = f"{calm_line},{flood_line}"
    alone, beside, flooding = Sent(), Sent(), Sent()
    over = threading.Event()

    def client(url: str) -> None:
        while not over.is_set():
            if flooding.send(url, flood_key) != 200:
                over.wait(min(pause_s, flooding.retry_after[-1]))

    def calm(url: str, sent: Sent) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sent.send(url, calm_key)
        print(f"{len(sent.succeeded)} requests", file=sys.stderr)

    with service(max_waiting_requests=_WAITING) as url:
        Sent().send(url, calm_key)  # warms up
        calm(url, alone)
        with ThreadPoolExecutor(clients) as threads:
            for _ in range(clients):
                threads.submit(client, url)
            try:
                time.sleep(10)  # until the queue is full
                calm(url, beside)
            finally:
                over.set()
    return {"alone": alone, "beside the flood": beside, "flood": flooding}


def silence(hours: float, folder: str) -> Path:
    """A FLAC file of silence."""
    path = Path(folder) / "silence.flac"
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, SAMPLE_RATE), dtype=np.int16), layout="mono"
    )
    frame.sample_rate = SAMPLE_RATE
    with av.open(path, "w") as container:
        stream = container.add_stream("flac", SAMPLE_RATE, layout="mono")
        for second in range(round(hours * 3600)):
            frame.pts = second * SAMPLE_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def memory_of(process: psutil.Process) -> dict[str, float]:
    """Of one process, in MB."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    names = {"anonymous": "Anonymous", "files": "Pss_File", "shared": "Pss_Shmem"}
    return {name: kilobytes[row] / 1000 for name, row in names.items()}


def memory(files: int, hours: float) -> tuple[list[dict[str, Any]], Counter[int]]:
    """The memory second by second, and the statuses of the answers."""
    rows: list[dict[str, Any]] = []
    os.environ[keys.KEYS] = keys.NONE
    with tempfile.TemporaryDirectory() as folder, service() as url:
        recording = silence(hours, folder)
        print(f"{recording.stat().st_size / 1e6:.1f} MB a file", file=sys.stderr)
        # Ray's processes are children of this one, beside those of other services.
        children = psutil.Process().children(recursive=True)
        processes = {
            name: next(p for p in children if p.cmdline()[:1] == [title])
            for name, title in _PROCESSES.items()
        }

        def send(_: int) -> int:
            with recording.open("rb") as file:
                fields = _GREEDY | {"clip_timestamps": "0,60"}
                return requests.post(
                    f"{url}/transcribe", files={"file": file}, data=fields, timeout=3600
                ).status_code

        def sample() -> None:
            row: dict[str, Any] = {"s": time.monotonic() - started}
            row |= {name: memory_of(process) for name, process in processes.items()}
            rows.append(row)
            print(row, file=sys.stderr)

        started = time.monotonic()
        sample()
        with ThreadPoolExecutor(files) as threads:
            answers = [threads.submit(send, number) for number in range(files)]
            while not all(answer.done() for answer in answers):
                time.sleep(1)
                sample()
        time.sleep(5)
        sample()
        return rows, Counter(answer.result() for answer in answers)


def _percentile(values: Sequence[float], percent: int) -> str:
    if not values:
        return "-"
    at = min(len(values) - 1, len(values) * percent // 100)
    return f"{sorted(values)[at]:.2f}"


def _print_flood(sent: dict[str, Sent]) -> None:
    heads = ("answered", "p50 s", "p95 s", "queue", "refused", "p50 s", "p95 s")
    print(f"{'key':<18}" + "".join(f" {head:>8}" for head in heads) + "  Retry-After")
    for name, of in sent.items():
        columns = [
            str(len(of.succeeded)),
            _percentile(of.succeeded, 50),
            _percentile(of.succeeded, 95),
            _percentile(of.queue, 50),
            str(len(of.refused)),
            _percentile(of.refused, 50),
            _percentile(of.refused, 95),
        ]
        waits = of.retry_after or [0]
        print(
            f"{name:<18}"
            + "".join(f" {column:>8}" for column in columns)
            + f"  {min(waits)} to {max(waits)} {dict(of.statuses)}"
        )


def _print_memory(rows: list[dict[str, Any]], statuses: Counter[int]) -> None:
    print(f"answers: {dict(statuses)}, {rows[-1]['s'] - 5:.0f} s")
    print(
        f"{'MB':<10} {'kind':<10} {'before':>8} {'most':>8} {'median':>8} {'after':>8}"
    )
    for name in _PROCESSES:
        for kind in rows[0][name]:
            column = [row[name][kind] for row in rows]
            print(
                f"{name:<10} {kind:<10} {column[0]:>8.0f} {max(column):>8.0f}"
                f" {statistics.median(column):>8.0f} {column[-1]:>8.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload")
    parts = parser.add_subparsers(dest="part", required=True)
    flooding = parts.add_parser("flood")
    flooding.add_argument("--clients", type=int, default=64)
    flooding.add_argument("--seconds", type=float, default=60, help="of each half")
    flooding.add_argument("--pause", type=float, default=60)
    holding = parts.add_parser("memory")
    holding.add_argument("--files", type=int, default=16)
    holding.add_argument("--hours", type=float, default=4)
    arguments = parser.parse_args()
    if arguments.part == "flood":
        with contextlib.redirect_stdout(sys.stderr):
            sent = flood(arguments.clients, arguments.seconds, arguments.pause)
        _print_flood(sent)
    else:
        with contextlib.redirect_stdout(sys.stderr):
            rows, statuses = memory(arguments.files, arguments.hours)
        _print_memory(rows, statuses)


if __name__ == "__main__":
    main()
