"""What a request waits while many others wait for slow hosts.

    python -m benchmarks.slow_hosts [--model NAME] [--repeat N] [--give-up-after SECONDS]

This script starts an application with one model, a good host and slow hosts, each of these at a
loopback address of its own. Some answer after 20 s, others send one byte a second. In each case the
requests for slow hosts are sent over HTTP, and two seconds later one for the good host, N times.
The table goes to stdout, progress to stderr. Of the request for the good host it tells the seconds,
those of them in which it was downloaded or waited for its turn, and how many requests had come to
slow hosts when it began.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments import launch, serve_config
from deployments.config import AppArgs, ModelArgs
from deployments.local import loopback
from tools.weights import weights, weights_environment

_FILE = Path(__file__).parents[1] / "tests" / "audio" / "jfk.flac"
_GOOD = "127.0.0.1"
_SLOW = [f"127.0.0.{number}" for number in range(2, 34)]
_LATE_S = 20.0
_HEAD_START_S = 2.0
# What is measured is not the model.
_LITTLE_WORK = {
    "language": "en",
    "clip_timestamps": "0,1",
    "beam_size": None,
    "temperature_increment_on_fallback": None,
}

_Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Hosts:
    """HTTP servers that run in a thread of their own, and answer each path in its way."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ways: dict[str, _Answer] = {
            "/good": self._whole,
            "/late": self._late,
            "/drip": self._drip,
        }
        self.asked = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Gives the port, which is the same at all addresses."""
        port = loopback.free_port("127.0.0.1")
        start = asyncio.start_server(self._serve, [_GOOD, *_SLOW], port)
        self._loop.run_until_complete(start)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        yield port
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Whoever asks may leave at any time.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self._ways[head.split()[1].decode()](writer)
        writer.close()

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        content = _FILE.read_bytes()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()

    async def _late(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(_LATE_S)
        await self._whole(writer)

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)


@contextlib.contextmanager
def requested(service: str, urls: list[str]) -> Iterator[None]:
    """Requests whose callers hang up at the end of the block."""
    with contextlib.ExitStack() as stack:
        for url in urls:
            connection = http.client.HTTPConnection(service)
            stack.callback(connection.close)
            body = json.dumps({"audio": url} | _LITTLE_WORK)
            connection.request("POST", "/transcribe", body)
        yield


@dataclass
class Taken:
    """In seconds: by one request, and of them for its download and for waiting."""

    total: float
    waiting: float


def taken_by(service: str, url: str, limit_s: float) -> Taken | None:
    """None where there is no answer within the limit."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(service, timeout=limit_s)
    try:
        body = json.dumps({"audio": url} | _LITTLE_WORK)
        connection.request("POST", "/transcribe", body)
        answer = json.loads(connection.getresponse().read())
    except TimeoutError:
        return None
    finally:
        connection.close()
    timings = answer["timings"]
    return Taken(time.monotonic() - started, timings["download"] + timings["queue"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_hosts")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--give-up-after", type=float, default=120.0)
    arguments = parser.parse_args()
    os.environ["PYTHONUNBUFFERED"] = "1"
    hosts = Hosts()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(hosts.running())
        with contextlib.redirect_stdout(sys.stderr):
            config, _ = serve_config.read_config()
            weights(arguments.model)
            os.environ.update(weights_environment())
            application = stack.enter_context(
                launch.running_app(
                    config, _args(arguments.model), loopback.free_port("127.0.0.1")
                )
            )
        service = application.removeprefix("http://")

        def urls(way: str, hosts: list[str], each: int) -> list[str]:
            return [
                f"http://{host}:{port}/{way}" for host in hosts for _ in range(each)
            ]

        cases = {
            "alone": [],
            "32 hosts that answer after 20 s": urls("late", _SLOW, 1),
            "32 hosts that send a byte a second": urls("drip", _SLOW, 1),
            "100 URLs of one host, each after 20 s": urls("late", _SLOW[:1], 100),
            "10 URLs of each of 10 hosts, byte by byte": urls("drip", _SLOW[:10], 10),
        }
        good = f"http://{_GOOD}:{port}/good"
        taken_by(service, good, 600)
        print(
            f"{'beside':<44} {'median s':>9} {'slowest s':>10} {'waiting s':>10} {'begun':>6}"
        )
        for name, slow in cases.items():
            taken: list[Taken | None] = []
            begun: list[int] = []
            for _ in range(arguments.repeat):
                before = hosts.asked
                with requested(service, slow):
                    time.sleep(_HEAD_START_S)
                    begun.append(hosts.asked - before)
                    taken.append(taken_by(service, good, arguments.give_up_after))
                print(name, begun[-1], taken[-1], file=sys.stderr)
                # The callers have left, and what they asked for ends.
                time.sleep(_HEAD_START_S)
                if taken[-1] is None:
                    break
            row = _row(taken, arguments.give_up_after)
            print(f"{name:<44} {row} {max(begun):>6}", flush=True)


def _args(model: str) -> AppArgs:
    args: dict[str, Any] = {"models": [ModelArgs(name=model)], "default_model": model}
    # Versions before this option fetch from loopback as from anywhere.
    if "allow_private_networks" in AppArgs.model_fields:
        args["allow_private_networks"] = True
    return AppArgs(**args)


def _row(taken: list[Taken | None], limit_s: float) -> str:
    answered = [one for one in taken if one is not None]
    if len(answered) < len(taken):
        return f"{f'none within {limit_s:g} s':>31}"
    seconds = [one.total for one in answered]
    waiting = max(one.waiting for one in answered)
    return f"{statistics.median(seconds):>9.2f} {max(seconds):>10.2f} {waiting:>10.2f}"


if __name__ == "__main__":
    main()
