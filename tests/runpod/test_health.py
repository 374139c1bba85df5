import socket

import pytest

from deployments.local import loopback
from deployments.runpod.health import HealthPort


def test_a_ping_is_answered_with_204_until_the_worker_is_ready() -> None:
    port = loopback.free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    health = HealthPort(port)
    assert loopback.session().get(f"{url}/ping?from=test").status_code == 204
    health.ready = True
    answer = loopback.session().get(f"{url}/ping")
    assert (answer.status_code, answer.content) == (200, b"")
    assert loopback.session().get(f"{url}/other").status_code == 404


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("", 0)) as taken, pytest.raises(OSError):
        HealthPort(taken.getsockname()[1])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
def test_a_ping_by_ipv6_is_answered_too() -> None:
    port = loopback.free_port("::")
    HealthPort(port)
    assert loopback.session().get(f"http://[::1]:{port}/ping").status_code == 204
