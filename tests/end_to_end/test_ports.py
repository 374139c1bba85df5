"""No port can be reached from another machine but those that docs/operations.md lists."""

import contextlib
import ipaddress
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.app import wait_for
from tests.support.listeners import Listener, parsed
from tests.support.markdown import ROOT
from tests.support.two_machines import Machine, two_machines
from tools.weights import weights, weights_environment

pytestmark = pytest.mark.slow

PORT, HEALTH_PORT = 8123, 8124

# Tries each port at each address, and prints those at which something answers.
KNOCK = """
import socket, sys
addresses, ports = (text.split(",") for text in sys.argv[1:])
for address in addresses:
    for port in map(int, ports):
        try:
            socket.create_connection((address, port), timeout=10).close()
            print(port)
        except ConnectionRefusedError:
            pass
"""


@dataclass(frozen=True)
class Row:
    """A row of that table. process: a regular expression"""

    process: str
    address: str


def table() -> list[Row]:
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("\n## Ports and secrets\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| `([^`]+)` \| ([^|]+) \|", section)
    return [Row(process, address.strip()) for process, address in rows]


def listeners(machine: Machine, process: psutil.Process) -> set[Listener]:
    """Of the process and all below it."""
    module = ("-m", "tests.support.listeners", str(process.pid))
    return parsed(machine.run(sys.executable, *module))


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


@contextlib.contextmanager
def running(
    machine: Machine, log: Path, *module: str, ready: str, **environment: str
) -> Iterator[psutil.Process]:
    """A service on this machine, once its log has the text; SIGTERM ends it."""
    weights("tiny.en")
    with log.open("wb") as file:
        process = subprocess.Popen(
            machine.command(sys.executable, "-m", *module),
            env=os.environ
            | weights_environment()
            | {"TMPDIR": "/tmp", "WHISPER_MODEL": "tiny.en"}
            | environment,
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(lambda: process.poll() is not None or ready in log.read_text(), 300)
        assert process.poll() is None, log.read_text()
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def reachable(caller: Machine, service: Machine, ports: set[int]) -> set[int]:
    """The ports of the service's machine that accept a connection from the caller's."""
    listed = ",".join(map(str, sorted(ports)))
    addresses = ",".join(service.addresses)
    return set(
        map(
            int,
            caller.run(sys.executable, "-c", KNOCK, addresses, listed).split(),
        )
    )


def assert_listed(found: set[Listener]) -> None:
    """Each listener is in the table of the docs."""
    for listener in found:
        rows = [row for row in table() if re.fullmatch(row.process, listener.process)]
        assert rows, f"docs/operations.md does not list {listener}"
        if all(row.address == "loopback" for row in rows):
            # A socket of Serve has the address of all interfaces, and the device of loopback.
            serves_own = listener.process == "ServeReplica" and listener.address == "::"
            assert is_loopback(listener.address) or serves_own, listener


def test_nothing_of_make_serve_can_be_reached_from_another_machine(
    tmp_path: Path,
) -> None:
    command = ("deployments.local", "serve", "--port", str(PORT))
    with (
        two_machines() as (machine, other),
        running(machine, tmp_path / "log", *command, ready="serving on") as process,
    ):
        found = listeners(machine, process)
        assert Listener("ProxyActor", "127.0.0.1", PORT) in found
        assert {"gcs_server", "raylet", "ServeReplica"} <= {x.process for x in found}
        assert_listed(found)
        ports = {listener.port for listener in found}
        assert reachable(other, machine, ports) == set()


def test_of_a_load_balancing_worker_its_own_two_ports_can_be_reached(
    tmp_path: Path,
) -> None:
    environment = {
        "WHISPER_ENDPOINT_TYPE": "LB",
        "API_KEYS": "none",
        "PORT": str(PORT),
        "PORT_HEALTH": str(HEALTH_PORT),
    }
    command = ("deployments.runpod",)
    with (
        two_machines() as (machine, other),
        running(
            machine, tmp_path / "log", *command, ready="event=ready", **environment
        ) as process,
    ):
        found = listeners(machine, process)
        assert_listed(found)
        ports = {listener.port for listener in found}
        assert reachable(other, machine, ports) == {PORT, HEALTH_PORT}
