"""Ports that are open to all interfaces."""

import socket

import pytest

from deployments.local import loopback
from deployments.runpod.ports import all_interfaces, check_port


@pytest.mark.parametrize("host", ["127.0.0.1", all_interfaces()])
def test_a_port_that_is_taken_on_any_interface_is_an_error(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        check_port(taken.getsockname()[1])


def test_a_port_that_has_been_checked_is_free_for_the_service() -> None:
    port = loopback.free_port("127.0.0.1")
    check_port(port)
    check_port(port)
