"""Listening sockets that other machines must not reach."""

import subprocess
import sys

CHECK = """
import socket
from deployments.replica.serve_ports import bind_to_loopback

def device(given):
    name = given.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    return name.rstrip(bytes(1))

everywhere = socket.create_server(("0.0.0.0", 0))
by_ipv6 = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
local = socket.create_server(("127.0.0.1", 0))
caller = socket.create_connection(local.getsockname())
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
unix, _ = socket.socketpair()
before = len(__import__("os").listdir("/proc/self/fd"))
bind_to_loopback()
assert [device(s) for s in (everywhere, by_ipv6)] == [b"lo", b"lo"]
assert [device(s) for s in (local, caller, udp)] == [b"", b"", b""]
assert len(__import__("os").listdir("/proc/self/fd")) == before
socket.create_connection(("127.0.0.1", everywhere.getsockname()[1])).close()
socket.create_connection(("127.0.0.1", by_ipv6.getsockname()[1])).close()
"""


def test_what_listens_on_all_interfaces_is_bound_to_loopback_and_still_answers_there() -> (
    None
):
    # In a process of its own, because the sockets of this one are not the test's.
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
