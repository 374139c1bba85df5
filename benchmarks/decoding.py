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
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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

# Decodes one file and gives its samples.
Decode = Callable[[Path], Awaitable[int]]


@dataclass(frozen=True)
class Run:
    """Files that were decoded at once.

    seconds: until the last of them
    audio_s: seconds of audio in all of them
    answers, slowest_ms: of GET /health a second meanwhile, and the longest wait for one
    """

    seconds: float
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


def in_threads(pool: ThreadPoolExecutor) -> Decode:
    """As the Router decoded before it had decoders of their own."""

    def decode(path: Path) -> int:
        with path.open("rb") as file:
            return len(decode_audio(file, 4 * 3600).samples)

    async def decoded(path: Path) -> int:
        return await asyncio.wrap_future(pool.submit(decode, path))

    return decoded


def in_decoders(decoder: Decoder) -> Decode:
    async def decoded(path: Path) -> int:
        with path.open("rb") as file:
            return len((await decoder.decode(FetchedFile(file, 0.0, False))).samples)

    return decoded


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


async def measured(decode: Decode, paths: list[Path]) -> Run:
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
    began, lengths = time.perf_counter(), []
    for decoding in asyncio.as_completed([decode(path) for path in paths]):
        lengths.append(await decoding)
    seconds = time.perf_counter() - began
    asking.stdin.close()
    answers, slowest_ms = json.loads(await asking.stdout.readline())
    await asking.wait()
    server.close()
    return Run(seconds, sum(lengths) / SAMPLE_RATE, answers / seconds, slowest_ms)


async def alone(decode: Decode, path: Path) -> float:
    """Median of the milliseconds for one file, one after the other."""
    times = []
    for _ in range(_ALONE):
        began = time.perf_counter()
        await decode(path)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


async def compare(folder: Path, minutes: float, rounds: int) -> None:
    sandbox = Sandbox()
    ways = {
        "threads": in_threads(ThreadPoolExecutor(available_cpus())),
        "decoders": in_decoders(Decoder(AppArgs(), sandbox)),
    }
    # The first file waits for the zygote.
    await ways["decoders"](AUDIO / "jfk.flac")
    cores = available_cpus()
    print(
        f"{cores} cores, recordings of {minutes:g} minutes, medians of {rounds} rounds"
    )
    print(
        f"{'':<28}{'seconds':>9}{'audio s/s':>11}{'by core':>9}"
        f"{'/health a s':>13}{'slowest ms':>12}"
    )
    for container, codec, rate, count in _KINDS:
        path = folder / f"speech.{container}"
        write(path, container, codec, rate, minutes)
        print(f"{codec}: {path.stat().st_size} bytes", file=sys.stderr)
        for way, decode in ways.items():
            runs = [await measured(decode, [path] * count) for _ in range(rounds)]
            print(runs, file=sys.stderr)
            seconds, audio_s, answers, slowest = (
                statistics.median(getattr(run, name) for run in runs)
                for name in ("seconds", "audio_s", "answers", "slowest_ms")
            )
            print(
                f"{f'{count} x {codec}, {way}':<28}{seconds:>9.1f}"
                f"{audio_s / seconds:>11.0f}{audio_s / seconds / cores:>9.0f}"
                f"{answers:>13.0f}{slowest:>12.0f}",
                flush=True,
            )
    print(f"\none clip of 11 s (FLAC), median of {_ALONE}:")
    for way, decode in ways.items():
        print(f"{way:<10}{await alone(decode, AUDIO / 'jfk.flac'):>8.1f} ms")
    sandbox.close()


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
