"""Many recordings decoded at once: by threads of one process, and by processes of their own.

    python -m benchmarks.decoding [--minutes N] [--rounds N]

This script makes recordings of N minutes from the speech in `tests/audio`, as Opus and as MP3, and
decodes 16 of the one and 8 of the other at once, as many at a time as there are cores: first by
threads that call `decode_audio`, then as the Router does it. Beside them the event loop of the same
process answers GET /health by HTTP, each time 5 ms after the last answer. Then one clip of 11 s
alone. The tables go to stdout, progress to stderr.
"""

import argparse
import asyncio
import json
import os
import resource
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from deployments.audio import SAMPLE_RATE
from deployments.audio.decode import decode_audio
from deployments.audio.sandbox.client import Sandbox
from deployments.config import AppArgs
from deployments.cpus import available_cpus
from deployments.router.decoding import Decoder
from deployments.router.fetching import FetchedFile

AUDIO = Path(__file__).parents[1] / "tests" / "audio"
_SPEECH = ("jfk.flac", "gettysburg.wav", "weissenburg.webm", "sonnet.ogg")
# Container, codec, rate, and how many are decoded at once.
_KINDS = (("ogg", "libopus", 48_000, 16), ("mp3", "libmp3lame", 44_100, 8))
_ALONE = 30
# Between an answer of /health and the next request: more would take a core from the decoding.
_PACE_S = 0.005

_CLIP = AUDIO / "jfk.flac"

# Decodes one file and tells how many samples it has.
Decode = Callable[[Path], Awaitable[int]]
Way = Callable[[], AbstractContextManager[Decode]]


@dataclass(frozen=True)
class Run:
    """Files that were decoded at once.

    seconds: until the last of them
    cpu_s: that all processes took for it, and for the start of the zygote
    audio_s: seconds of audio in all of them
    answers, slowest_ms: of GET /health a second meanwhile, and the longest wait for one
    """

    seconds: float
    cpu_s: float
    audio_s: float
    answers: float
    slowest_ms: float


def write(path: Path, container: str, codec: str, rate: int, minutes: float) -> None:
    """A recording of speech over and over."""
    pieces = []
    for name in _SPEECH:
        with (AUDIO / name).open("rb") as file:
            pieces.append(decode_audio(file, 600).samples)
    once = np.concatenate(pieces)
    samples = np.resize(once, int(minutes * 60 * SAMPLE_RATE))
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=rate)
        for start in range(0, len(samples), SAMPLE_RATE):
            second = samples[start : start + SAMPLE_RATE]
            frame = av.AudioFrame.from_ndarray(
                second[None], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            frame.time_base = Fraction(1, SAMPLE_RATE)
            for resampled in resampler.resample(frame):
                output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))


@contextmanager
def in_threads() -> Iterator[Decode]:
    """As the Router decoded before it had decoders of their own."""

    def decode(path: Path) -> int:
        with path.open("rb") as file:
            return len(decode_audio(file, 4 * 3600).samples)

    async def decoded(path: Path) -> int:
        return await asyncio.wrap_future(pool.submit(decode, path))

    with ThreadPoolExecutor(available_cpus()) as pool:
        yield decoded


@contextmanager
def in_decoders() -> Iterator[Decode]:
    sandbox = Sandbox()
    decoder = Decoder(AppArgs(), sandbox)

    async def decoded(path: Path) -> int:
        with path.open("rb") as file:
            return len((await decoder.decode(FetchedFile(file, 0.0, False))).samples)

    yield decoded
    sandbox.close()


async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()


def ask(port: int) -> None:
    """Ask for /health until stdin ends, and print how often and the longest wait."""
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        print("asking", flush=True)
        while not select.select([sys.stdin], [], [], _PACE_S)[0]:
            began = time.perf_counter()
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(4096)
            times.append(time.perf_counter() - began)
    print(json.dumps([len(times), 1000 * max(times)]), flush=True)


async def measured(way: Way, paths: list[Path]) -> Run:
    """All files at once, and GET /health beside them."""
    server = await asyncio.start_server(health, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.decoding", "--ask", str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert asking.stdin is not None and asking.stdout is not None
    await asking.stdout.readline()
    cpu_s = used_cpu_s()
    with way() as decode:
        # The first file waits for the zygote.
        await decode(_CLIP)
        began, lengths = time.perf_counter(), []
        for decoding in asyncio.as_completed([decode(path) for path in paths]):
            lengths.append(await decoding)
        seconds = time.perf_counter() - began
    cpu_s = used_cpu_s() - cpu_s
    asking.stdin.close()
    answers, slowest_ms = json.loads(await asking.stdout.readline())
    await asking.wait()
    server.close()
    audio_s = sum(lengths) / SAMPLE_RATE
    return Run(seconds, cpu_s, audio_s, answers / seconds, slowest_ms)


def used_cpu_s() -> float:
    """Of this process and of its children that have ended; a zygote counts its decoders."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


async def alone(way: Way) -> float:
    """Median of the milliseconds for one clip, one after the other."""
    times = []
    with way() as decode:
        await decode(_CLIP)
        for _ in range(_ALONE):
            began = time.perf_counter()
            await decode(_CLIP)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


async def compare(folder: Path, minutes: float, rounds: int) -> None:
    ways = {"threads": in_threads, "decoders": in_decoders}
    cores = available_cpus()
    load = os.getloadavg()[0]
    print(
        f"{cores} cores, recordings of {minutes:g} minutes, medians of {rounds} rounds,"
        f" load of the machine before: {load:.1f}"
    )
    print(
        f"{'':<27}{'seconds':>8}{'CPU s':>7}{'audio s/s':>10}{'by core':>8}"
        f"{'by CPU s':>9}{'/health a s':>12}{'slowest ms':>11}"
    )
    for container, codec, rate, count in _KINDS:
        path = folder / f"speech.{container}"
        write(path, container, codec, rate, minutes)
        print(f"{codec}: {path.stat().st_size} bytes", file=sys.stderr)
        for name, way in ways.items():
            runs = [await measured(way, [path] * count) for _ in range(rounds)]
            print(runs, file=sys.stderr)
            seconds, cpu_s, audio_s, answers, slowest = (
                statistics.median(getattr(run, field.name) for run in runs)
                for field in fields(Run)
            )
            print(
                f"{f'{count} x {codec}, {name}':<27}{seconds:>8.1f}{cpu_s:>7.1f}"
                f"{audio_s / seconds:>10.0f}{audio_s / seconds / cores:>8.0f}"
                f"{audio_s / cpu_s:>9.0f}{answers:>12.0f}{slowest:>11.0f}",
                flush=True,
            )
    print(f"\none clip of 11 s (FLAC), median of {_ALONE}:")
    for name, way in ways.items():
        print(f"{name:<10}{await alone(way):>8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask is not None:
        ask(arguments.ask)
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder), arguments.minutes, arguments.rounds))


if __name__ == "__main__":
    main()
