"""What the download relies on in the insides of requests and urllib3, and what comes of it."""

import inspect
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from deployments.contract.errors import AudioHostError, RequestCancelledError
from tests.support.downloads import (
    LIMITS,
    PATIENCE_S,
    download,
    seconds_since,
    url_error,
)
from tests.support.misbehaving_server import MisbehavingServer, answer_with


@pytest.mark.parametrize("pool", [HTTPConnectionPool, HTTPSConnectionPool])
def test_a_pool_makes_its_connections_of_the_class_that_it_names(
    pool: type[HTTPConnectionPool],
) -> None:
    class Own(pool.ConnectionCls):  # type: ignore[name-defined]
        pass

    made = pool("example.com")
    made.ConnectionCls = Own
    connection = made._new_conn()
    assert isinstance(connection, Own)
    made.close()


@pytest.mark.parametrize("connection", [HTTPConnection, HTTPSConnection])
def test_every_connection_is_made_by_new_conn(
    connection: type[HTTPConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    class Refusal(Exception):
        pass

    class Own(connection):  # type: ignore[valid-type,misc]
        def _new_conn(self) -> socket.socket:
            asked.append((self._dns_host, self.port))
            raise Refusal

    def unexpected(*_: object) -> None:
        raise AssertionError("connected by another way")

    monkeypatch.setattr(socket.socket, "connect", unexpected)
    monkeypatch.setattr(socket, "getaddrinfo", unexpected)
    with pytest.raises(Refusal):
        Own("Example.com.", port=8443).connect()
    # What is dialled may end with a dot; the Host header and the certificate have none.
    assert asked == [("Example.com.", 8443)]
    assert Own("Example.com.").host == "Example.com"


def test_the_pool_of_a_request_comes_from_this_method_of_the_adapter() -> None:
    source = inspect.getsource(HTTPAdapter.send)
    assert "self.get_connection_with_tls_context(" in source


def test_requests_asks_for_no_proxy_where_it_is_given_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    request = requests.Request("GET", "http://example.com/").prepare()
    adapter = HTTPAdapter()
    pool: Any = adapter.get_connection_with_tls_context(request, True, proxies={})
    assert (pool.host, pool.proxy) == ("example.com", None)


@pytest.mark.parametrize("other", ["http://127.0.0.2:{port}/", "http://127.0.0.1/"])
def test_a_host_that_requests_reads_in_another_way_is_not_asked(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    def prepare_url(self: requests.PreparedRequest, *_: object) -> None:
        self.url = other.format(port=server.port)

    monkeypatch.setattr(requests.PreparedRequest, "prepare_url", prepare_url)
    assert url_error(server.url()) == "malformed URL: the host is in doubt"
    assert server.n_connections == 0


def test_the_socket_options_of_urllib3_are_set(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodelay: list[int] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        nodelay.append(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        connect(self, sockaddr)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    server.answer(answer_with(body=b"x"))
    download(server.url())
    assert nodelay == [1]


@pytest.fixture
def full() -> Iterator[str]:
    """The URL of a host that takes no more connections: a client waits there for an answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}/"
        for sock in waiting:
            sock.close()


def test_a_caller_who_leaves_ends_a_connection_that_is_being_made(full: str) -> None:
    left = threading.Event()
    timer = threading.Timer(0.2, left.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(RequestCancelledError):
        download(full, LIMITS, left.is_set)
    assert seconds_since(started) < PATIENCE_S
    timer.join()


def test_the_deadline_ends_a_connection_that_is_being_made(full: str) -> None:
    limits = replace(LIMITS, total_timeout_s=0.3)
    with pytest.raises(AudioHostError, match="timed out after 0.3 s in total"):
        download(full, limits)
