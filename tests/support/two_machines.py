"""Two machines with a wire between them, made of Linux network namespaces on this one.

A process in one of them sees nothing of this machine's network.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.app import ROOT, wait_for

_MACHINE = ("unshare", "-n", "sleep", "infinity")
_OWN_USERS = ("unshare", "-U", "-r", "-n", "sleep", "infinity")


@dataclass(frozen=True)
class Machine:
    """addresses: by IPv4 and by IPv6, beside loopback"""

    addresses: tuple[str, str]
    _pid: int

    def command(self, *command: str) -> list[str]:
        """The command as it is run on this machine."""
        users = [] if _same_namespace(self._pid, "user") else ["-U"]
        flags = [*users, "--preserve-credentials", "-n"] if users else ["-n"]
        return ["nsenter", "-t", str(self._pid), *flags, "--", *command]

    def run(self, *command: str) -> str:
        """What the command prints, which has to succeed."""
        done = subprocess.run(
            self.command(*command),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """The machines. Skips the test where namespaces cannot be made."""
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "ip")):
        pytest.skip("util-linux and iproute2 are needed to make network namespaces")
    with contextlib.ExitStack() as stack:
        own_users = os.geteuid() != 0
        command = _OWN_USERS if own_users else _MACHINE
        here = stack.enter_context(_namespace([*command]))
        first = Machine(("10.77.0.1", "fd77::1"), here)
        there = stack.enter_context(_namespace(first.command(*_MACHINE)))
        second = Machine(("10.77.0.2", "fd77::2"), there)
        wire = f"ip link add wire type veth peer name wire netns {there}"
        first.run(*wire.split())
        for machine, other in ((first, second), (second, first)):
            machine.run("ip", "link", "set", "lo", "up")
            for address, length in zip(machine.addresses, (24, 64), strict=True):
                place = [f"{address}/{length}", "dev", "wire"]
                # Without a check for duplicates, which takes a second.
                nodad = ["nodad"] if ":" in address else []
                machine.run("ip", "address", "add", *place, *nodad)
            machine.run("ip", "link", "set", "wire", "up")
            machine.run("ip", "route", "add", "default", "via", other.addresses[0])
        yield first, second


@contextlib.contextmanager
def _namespace(command: list[str]) -> Iterator[int]:
    """A process in a new network namespace; gives its id."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(
                lambda: (
                    process.poll() is not None
                    or not _same_namespace(process.pid, "net")
                )
            )
            if process.poll() is not None:
                assert process.stderr is not None
                reason = process.stderr.read().strip()
                pytest.skip(f"network namespaces cannot be made here: {reason}")
            yield process.pid
        finally:
            process.kill()


def _same_namespace(pid: int, kind: str) -> bool:
    """Whether a process is in this process's namespace of a kind."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(
            f"/proc/self/ns/{kind}"
        )
    return True
