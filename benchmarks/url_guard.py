"""What the URL guard costs a download, and whether a refusal tells names apart by its time.

    python -m benchmarks.url_guard [--downloads N] [--refusals N]

A small file is downloaded from loopback, by turns with the guard and with one that judges nothing
and asks the resolver itself. Then a name that is private and one that does not exist are refused by
turns. Both tables go to stdout.
"""

import argparse
import ipaddress
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from deployments.audio.download import FetchLimits, UrlGuard, fetch_audio
from deployments.audio.download.addresses import OwnAddresses, is_public
from deployments.audio.download.resolver import Endpoint
from deployments.audio.download.url import HttpUrl
from deployments.contract.errors import AudioUrlError
from tests.support.http_server import served_file

RECORDING = Path(__file__).parent.parent / "tests" / "audio" / "jfk-phone.wav"
LIMITS = FetchLimits(
    max_bytes=1 << 30,
    connect_timeout_s=10,
    read_timeout_s=30,
    total_timeout_s=60,
    back_offs_s=(),
)
# Known to every machine, by its file of hosts, and known to none (RFC 2606).
PRIVATE_NAME, UNKNOWN_NAME = "localhost", "nonexistent.invalid"


class Unguarded(UrlGuard):
    """Judges nothing, and looks up names as urllib3 does."""

    def read(self, url: str) -> HttpUrl:
        return HttpUrl.parse(url)

    def endpoints(
        self, host: str, port: int, timeout_s: float, sleep: Callable[[float], None]
    ) -> list[Endpoint]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [Endpoint(info[0], info[4]) for info in found]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.url_guard")
    parser.add_argument("--downloads", type=int, default=500)
    parser.add_argument("--refusals", type=int, default=20)
    arguments = parser.parse_args()
    print(
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}),"
        f" Python {platform.python_version()}\n"
    )
    print(
        "| download of 88 kB from loopback | without, ms | with, ms"
        " | CPU without, ms | CPU with, ms |\n|---|--:|--:|--:|--:|"
    )
    for by, row in downloads(arguments.downloads):
        print(f"| by {by} | " + " | ".join(f"{ms:.2f}" for ms in row) + " |")
    print("\n| of which | microseconds |\n|---|--:|")
    for part, seconds in parts():
        print(f"| {part} | {1e6 * seconds:.0f} |")
    print(
        "\n| refused | look-up, ms | refusal, ms: least | median | most |"
        "\n|---|--:|--:|--:|--:|"
    )
    for name, (look_up, times) in refusals(arguments.refusals).items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"| {name} | {look_up:.2f} | {low:.2f} | {middle:.2f} | {high:.2f} |")


def downloads(count: int) -> Iterator[tuple[str, list[float]]]:
    """By name and by address: median milliseconds of a download, without the guard and with it.

    The seconds on the clock come first, and then those of the processor, which also holds what the
    server of the file takes.
    """
    with served_file(RECORDING) as url:
        port = HttpUrl.parse(url).port
        allowed = [f"127.0.0.1:{port}", f"[::1]:{port}"]
        guards = Unguarded(), UrlGuard(allow_hosts=allowed)
        for by, host in (("address", "127.0.0.1"), ("name", PRIVATE_NAME)):
            columns: list[list[float]] = [[] for _ in range(4)]
            for number in range(count + 10):
                for which, guard in enumerate(guards):
                    clock, cpu = time.perf_counter(), time.process_time()
                    with fetch_audio(f"http://{host}:{port}/", LIMITS, guard=guard):
                        clock, cpu = (
                            time.perf_counter() - clock,
                            time.process_time() - cpu,
                        )
                    if number >= 10:  # The first ones warm up.
                        columns[which].append(1000 * clock)
                        columns[2 + which].append(1000 * cpu)
            yield by, [statistics.median(column) for column in columns]


def parts() -> Iterator[tuple[str, float]]:
    """Median seconds of what the guard does."""
    url = "https://bucket.s3.eu-west-1.amazonaws.com/a.mp3?X-Amz-Signature=0af1"
    v4, v6 = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("2606:2800::1")
    own = OwnAddresses()
    yield "reading the URL", _median(lambda: HttpUrl.parse(url))
    yield "an IPv4 address against the table", _median(lambda: is_public(v4))
    yield "an IPv6 address against the table", _median(lambda: is_public(v6))
    yield "an address against this machine's own", _median(lambda: v4 in own)
    yield (
        "reading this machine's addresses, once a minute",
        _median(lambda: v4 in OwnAddresses()),
    )


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(1000):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def refusals(count: int) -> dict[str, tuple[float, list[float]]]:
    """By name: median milliseconds of its look-up, and of each refusal of a download from it."""
    names = {
        "private name": PRIVATE_NAME,
        "name that does not exist": UNKNOWN_NAME,
    }
    guard = UrlGuard()
    times: dict[str, list[float]] = {name: [] for name in names}
    look_ups: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name, host in names.items():
            started = time.perf_counter()
            with suppress(socket.gaierror):
                socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
            look_ups[name].append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            with suppress(AudioUrlError):
                fetch_audio(f"http://{host}/", LIMITS, guard=guard)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: (statistics.median(look_ups[name]), times[name]) for name in names}


if __name__ == "__main__":
    main()
