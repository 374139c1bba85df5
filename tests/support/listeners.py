"""The sockets that wait for callers, of a process and all below it.

    python -m tests.support.listeners PID

prints them as JSON. It sees the network that it runs in, so call it where the processes are.
"""

import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Listener:
    """process: as the table in docs/operations.md names it"""

    process: str
    address: str
    port: int


def parsed(printed: str) -> set[Listener]:
    """What this module printed."""
    return {Listener(**listener) for listener in json.loads(printed)}


def listeners(process: psutil.Process) -> Iterator[Listener]:
    """By TCP and UDP."""
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            name = process_name(one)
            for connection in one.net_connections("inet"):
                open_tcp = connection.status == psutil.CONN_LISTEN
                open_udp = connection.type == socket.SOCK_DGRAM and not connection.raddr
                if open_tcp or open_udp:
                    yield Listener(name, *connection.laddr)


def process_name(process: psutil.Process) -> str:
    """What Ray writes after `ray::`, or the module, script or program that runs."""
    title, *arguments = process.cmdline()
    if title.startswith("ray::"):
        return re.split(r"[.:\s]", title.removeprefix("ray::"))[0]
    if "python" not in Path(title).name:
        return Path(title).name
    module = arguments[arguments.index("-m") + 1 :] if "-m" in arguments else []
    scripts = [Path(text).name for text in arguments if text.endswith(".py")]
    return [*module, *scripts, "python"][0]


if __name__ == "__main__":
    found = listeners(psutil.Process(int(sys.argv[1])))
    print(json.dumps([asdict(listener) for listener in found]))
