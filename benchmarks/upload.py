"""How much memory Serve's proxy and the Router take while a large file is uploaded.

    python -m benchmarks.upload [--megabytes N]

This script starts an application, and curl uploads WAV files that this script makes, each with a
length and without one (chunked): the first of N MB, the second larger than `max_download_bytes`.
The memory of both processes is sampled every 20 ms: the pages that are a process's own, and all
resident pages. Ray's object store, which both processes map, counts among the latter in each.
The table goes to stdout, progress to stderr.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from deployments import launch, serve_config
from deployments.local import loopback
from tools.weights import weights, weights_environment

# Three channels of 24 bits at 192 kHz: 1.7 MB a second, so that the decoded audio is short.
_RATE, _CHANNELS, _WIDTH = 192_000, 3, 3
_PROCESSES = {"proxy": "ray::ProxyActor", "router": "ray::ServeReplica:whisper:Router"}
# Of a little speech-like noise the rest is not transcribed.
_FIELDS = ("clip_timestamps=0,1", "language=en", "temperature_increment_on_fallback=0")


@dataclass
class Peak:
    """Of one process, in bytes: before the upload and at most during it."""

    before: dict[str, int]
    most: dict[str, int] = field(default_factory=dict)

    def see(self, now: dict[str, int]) -> None:
        self.most = {
            kind: max(size, self.most.get(kind, 0)) for kind, size in now.items()
        }

    def grown_mb(self, kind: str) -> float:
        return (self.most[kind] - self.before[kind]) / 1e6


def memory(process: psutil.Process) -> dict[str, int]:
    """Of one process, in bytes: `anonymous` (RssAnon) and `resident` (VmRSS)."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    kilobytes = {
        line.split(":")[0]: line.split()[1] for line in status if " kB" in line
    }
    return {
        "anonymous": int(kilobytes["RssAnon"]) << 10,
        "resident": int(kilobytes["VmRSS"]) << 10,
    }


def processes() -> dict[str, psutil.Process]:
    """The proxy and the Router of the Ray that this process has started."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            found |= {
                name: process
                for name, own in _PROCESSES.items()
                if title.startswith(own)
            }
    return found


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, Peak]]:
    """The memory of both processes while the block runs."""
    watched = processes()
    result = {name: Peak(memory(process)) for name, process in watched.items()}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for name, process in watched.items():
                result[name].see(memory(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield result
    finally:
        ended.set()
        thread.join()
        for name, process in watched.items():
            result[name].see(memory(process))


def write_wave(path: Path, size: int) -> None:
    """A WAV file of about `size` bytes, made of noise."""
    frame = _CHANNELS * _WIDTH
    noise = np.random.default_rng(0).integers(0, 256, _RATE * frame, dtype=np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(_CHANNELS)
        file.setsampwidth(_WIDTH)
        file.setframerate(_RATE)
        for _ in range(size // len(noise)):
            file.writeframesraw(noise.tobytes())


def upload(url: str, path: Path, *more: str) -> dict[str, str]:
    """What curl says of an upload: status, seconds, bytes sent, and the answer."""
    form = [
        f"-Ffile=@{path};filename=recording.wav",
        *(f"-F{text}" for text in _FIELDS),
    ]
    told = "\n%{http_code} %{time_total} %{size_upload}"
    done = subprocess.run(
        ["curl", "-s", "-w", told, *more, *form, f"{url}/transcribe"],
        capture_output=True,
        text=True,
        check=False,
    )
    answer, _, line = done.stdout.rpartition("\n")
    status, seconds, sent = line.split()
    return {"status": status, "seconds": seconds, "sent": sent, "answer": answer}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload")
    parser.add_argument("--megabytes", type=int, default=900)
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        config, args = serve_config.read_config()
        weights(args.default_model)
        os.environ.update(weights_environment())
    size = arguments.megabytes * 1_000_000
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file, larger = Path(folder, "file.wav"), Path(folder, "larger.wav")
        write_wave(file, size)
        shutil.copy(file, larger)
        os.truncate(larger, args.max_download_bytes + (100 << 20))
        with contextlib.redirect_stdout(sys.stderr):
            url = stack.enter_context(
                launch.running_app(config, args, loopback.free_port("127.0.0.1"))
            )
        cases = [
            ("a form", file, ()),
            ("without a length", file, ("-H", "Transfer-Encoding: chunked")),
            ("over the cap", larger, ()),
            (
                "over the cap, without a length",
                larger,
                ("-H", "Transfer-Encoding: chunked"),
            ),
        ]
        for name, path, more in cases:
            with peaks() as peak:
                told = upload(url, path, *more)
            time.sleep(2)
            answer = json.loads(told.pop("answer"))
            print(name, told, str(answer)[:200], file=sys.stderr)
            rows.append((name, told, peak))
    print(
        "MB more than before the upload, of the process's own / of all resident pages:"
    )
    print(f"{'upload':<32} {'status':>6} {'s':>6} {'sent MB':>8}  proxy and Router")
    for name, told, peak in rows:
        grown = (
            f"{process} {one.grown_mb('anonymous'):.0f} / {one.grown_mb('resident'):.0f}"
            for process, one in peak.items()
        )
        print(
            f"{name:<32} {told['status']:>6} {float(told['seconds']):>6.1f}"
            f" {int(told['sent']) / 1e6:>8.0f}  {', '.join(grown)}"
        )


if __name__ == "__main__":
    main()
