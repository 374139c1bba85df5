"""What may be fetched from, under each option, and what a caller and the log are told."""

import ipaddress
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.audio.download import UrlGuard
from deployments.audio.download.url_guard import NO_PUBLIC_ADDRESS
from deployments.contract.errors import AudioUrlError
from tests.support.app import lan_address
from tests.support.downloads import (
    IMPATIENT,
    ONE_TRY,
    SECRET,
    SOUND,
    download,
    host_error,
    url_error,
)
from tests.support.misbehaving_server import (
    MisbehavingServer,
    answer_with,
    redirect_to,
)

Resolves = Callable[..., None]


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Resolves:
    """Tells to which addresses names resolve; a number is the resolver's error."""
    known: dict[str, list[str] | int] = {}

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
        answer = known.get(host, socket.EAI_NONAME)
        if isinstance(answer, int):
            raise socket.gaierror(answer, "SECRET")
        infos: list[Any] = []
        for address in answer:
            if ":" in address:
                infos.append((socket.AF_INET6, 1, 6, "", (address, port, 0, 0)))
            else:
                infos.append((socket.AF_INET, 1, 6, "", (address, port)))
        return infos

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known.update


def closed(**options: Any) -> UrlGuard:
    return UrlGuard(tick_s=0.001, **options)


def verdict(guard: UrlGuard, url: str) -> str:
    """`allowed`, or the text of the refusal; without a connection."""
    try:
        parsed = guard.read(url)
        if guard.egress_proxy is None:
            guard.endpoints(parsed.host, parsed.port, 60, lambda _: None)
    except AudioUrlError as error:
        return str(error.args[0])
    return "allowed"


def test_private_and_unknown_hosts_are_told_alike(resolves: Resolves) -> None:
    resolves(
        {"intranet": ["10.0.0.5"], "mixed.test": ["1.1.1.1", "10.0.0.5"], "none": []}
    )
    for host in ("intranet", "mixed.test", "none", "unknown.test", "10.0.0.5", "[::1]"):
        assert url_error(f"http://{host}{SECRET}", guard=closed()) == NO_PUBLIC_ADDRESS


def test_open_and_closed_ports_of_this_machine_are_told_alike(
    server: MisbehavingServer,
) -> None:
    for url in (server.url(SECRET), f"http://127.0.0.1:1025{SECRET}"):
        assert url_error(url, guard=closed()) == NO_PUBLIC_ADDRESS
    assert server.n_connections == 0


def test_neither_an_unknown_nor_a_private_name_is_asked_for_again(
    resolves: Resolves, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolves({"intranet": ["10.0.0.5"]})
    getaddrinfo = socket.getaddrinfo

    def counted(host: str, *args: Any, **kwargs: Any) -> object:
        asked.append(host)
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    for host in ("intranet", "unknown.test"):
        assert url_error(f"http://{host}/", guard=closed()) == NO_PUBLIC_ADDRESS
    assert asked == ["intranet", "unknown.test"]


def test_a_resolver_that_fails_for_the_moment_gets_more_tries(
    resolves: Resolves,
) -> None:
    resolves({"a.test": socket.EAI_AGAIN})
    reason = host_error(f"http://a.test{SECRET}", guard=closed())
    assert reason == "host name could not be resolved"


def test_refusals_of_names_are_told_at_the_same_times(resolves: Resolves) -> None:
    resolves({"intranet": ["10.0.0.5"]})
    for host in ("intranet", "unknown.test"):
        slept: list[float] = []
        began = time.monotonic()
        with pytest.raises(AudioUrlError):
            UrlGuard(tick_s=1000).endpoints(host, 80, 60, slept.append)
        # What is left of the time after the look-up.
        assert 1000 - (time.monotonic() - began) <= slept[0] <= 1000


def test_own_addresses_are_refused_also_where_they_are_public(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons: list[str] = []
    own = ipaddress.ip_address(lan_address())
    monkeypatch.setattr(
        "deployments.audio.download.url_guard.is_public", lambda address: True
    )
    guard = closed(on_refused=reasons.append)
    assert verdict(guard, f"http://{own}:8265/") == NO_PUBLIC_ADDRESS
    assert verdict(guard, "http://127.0.0.1:8265/") == NO_PUBLIC_ADDRESS
    assert reasons == ["own_address"] * 2


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("http://10.0.0.5:9000/", True),
        ("http://10.0.0.5/", False),
        ("http://10.0.0.6:9000/", False),
        ("http://[::ffff:10.0.0.5]:9000/", True),
        ("http://named.test:9000/", True),
        ("http://NAMED.test.:9000/", True),
        ("http://named.test:9001/", False),
        ("http://other.named.test:9000/", False),
        ("http://points.there.test:9000/", True),
        ("http://[fd00::5]:80/", True),
        ("http://[fd00:0::5]/", True),
        ("http://[fd00::6]/", False),
        ("http://10.0.0.7:22/", True),
        ("http://10.0.0.7:23/", False),
    ],
)
def test_an_allowed_host_opens_itself_and_nothing_else(
    resolves: Resolves, url: str, is_allowed: bool
) -> None:
    names = ("named.test", "named.test.", "other.named.test")
    resolves(
        {name: ["192.168.0.9"] for name in names} | {"points.there.test": ["10.0.0.5"]}
    )
    allowed = ["10.0.0.5:9000", "named.test:9000", "[fd00::5]:80", "10.0.0.7:22"]
    assert (verdict(closed(allow_hosts=allowed), url) == "allowed") is is_allowed


def test_an_allowed_address_does_not_let_a_private_one_through_beside_it(
    resolves: Resolves,
) -> None:
    resolves({"a.test": ["10.0.0.5", "10.0.0.6"]})
    guard = closed(allow_hosts=["10.0.0.5:80"])
    assert verdict(guard, "http://a.test/") == NO_PUBLIC_ADDRESS


def test_refused_networks_are_refused_also_within_what_is_allowed() -> None:
    networks = ["161.26.0.0/16", "10.1.0.0/16", "2600:1::/32"]
    for allow_private in (False, True):
        guard = closed(refuse_networks=networks, allow_private_networks=allow_private)
        for host in ("161.26.0.1", "10.1.2.3", "[2600:1::1]", "[64:ff9b::161.26.0.1]"):
            assert verdict(guard, f"http://{host}/") == NO_PUBLIC_ADDRESS
        assert verdict(guard, "http://161.27.0.1/") == "allowed"


def test_where_private_networks_are_allowed_all_addresses_and_ports_are() -> None:
    guard = closed(allow_private_networks=True)
    for host in ("127.0.0.1:22", "169.254.169.254", "[::1]:6000", "224.0.0.1"):
        assert verdict(guard, f"http://{host}/") == "allowed"
    assert verdict(guard, "http://2130706433/").startswith("malformed URL")
    assert verdict(guard, "file:///etc/passwd").startswith("only http and https")


@pytest.mark.parametrize("port", [1, 22, 25, 81, 1023, 2049, 6000, 6667, 10080])
def test_ports_of_other_services_are_not_fetched_from(port: int) -> None:
    assert verdict(closed(), f"http://1.1.1.1:{port}/") == (
        f"port {port} is not fetched from: 80, 443 and most from 1024 on are"
    )


@pytest.mark.parametrize("port", [80, 443, 1024, 8000, 8443, 65535])
def test_ports_of_web_servers_are_fetched_from(port: int) -> None:
    assert verdict(closed(), f"http://1.1.1.1:{port}/") == "allowed"


def test_a_refusal_is_counted_once_and_logged_with_its_address_alone(
    resolves: Resolves, log: pytest.LogCaptureFixture, server: MisbehavingServer
) -> None:
    resolves({"intranet-signature": ["10.0.0.5"]})
    reasons: list[str] = []
    guard = closed(
        allow_hosts=[f"127.0.0.1:{server.port}"],
        refuse_networks=["161.26.0.0/16"],
        on_refused=reasons.append,
    )
    server.answer(redirect_to("http://169.254.169.254/latest/SECRET"))
    for url in (
        "http://intranet-signature/",
        "http://unknown-signature.test/",
        "http://161.26.0.1/SECRET",
        "http://1.1.1.1:22/SECRET",
        "http://user:SECRET@2130706433/",
        server.url(SECRET),
    ):
        url_error(url, guard=guard)
    assert reasons == [
        *("not_public", "unresolved", "refused_network", "port", "malformed"),
        "not_public",
    ]
    assert log.messages == [
        "event=url_refused reason=not_public address=10.0.0.5",
        "event=url_refused reason=unresolved address=-",
        "event=url_refused reason=refused_network address=161.26.0.1",
        "event=url_refused reason=port address=-",
        "event=url_refused reason=malformed address=-",
        "event=url_refused reason=not_public address=169.254.169.254",
    ]


def test_what_is_allowed_beyond_the_default_is_logged(
    log: pytest.LogCaptureFixture,
) -> None:
    closed().log_exceptions()
    assert log.messages == []
    closed(allow_hosts=["10.0.0.5:9000", "minio:80"]).log_exceptions()
    closed(allow_private_networks=True).log_exceptions()
    closed(egress_proxy="http://user:SECRET@proxy:3128").log_exceptions()
    assert [re.match(r"event=\S+", line)[0] for line in log.messages] == [  # type: ignore[index]
        "event=hosts_allowed",
        "event=private_networks_allowed",
        "event=egress_proxy_used",
    ]
    assert log.messages[0] == "event=hosts_allowed hosts=10.0.0.5:9000,minio:80"


def test_a_proxy_of_the_environment_is_logged_as_ignored(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:SECRET@proxy:3128")
    closed().log_exceptions()
    [line] = log.messages
    assert line.startswith("event=proxy_ignored ")


def test_the_host_that_is_asked_gets_the_name_and_not_the_address(
    resolves: Resolves, server: MisbehavingServer
) -> None:
    resolves({"recordings.test": ["127.0.0.1"]})
    server.answer(answer_with(body=SOUND))
    guard = closed(allow_hosts=[f"recordings.test:{server.port}"])
    url = f"http://Recordings.test:{server.port}/a.mp3"
    assert download(url, ONE_TRY, guard=guard) == SOUND
    assert f"\r\nHost: recordings.test:{server.port}\r\n" in server.requests[0]


def test_the_next_address_is_tried_where_one_does_not_answer(
    resolves: Resolves, server: MisbehavingServer
) -> None:
    resolves({"a.test": ["127.0.0.2", "::1", "127.0.0.1"]})
    server.answer(answer_with(body=SOUND))
    url = f"http://a.test:{server.port}/a.mp3"
    assert download(url, IMPATIENT) == SOUND


def test_four_addresses_are_tried_at_most(
    resolves: Resolves, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, float]] = []

    def connect(self: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        tried.append((sockaddr[0], self.gettimeout() or 0.0))
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", connect)
    resolves({"many.test": [f"1.1.1.{n}" for n in range(50)]})
    reason = host_error("http://many.test/", ONE_TRY, closed())
    assert reason == "timed out after 60 s without a connection"
    assert [address for address, _ in tried] == [f"1.1.1.{n}" for n in range(4)]
    # Of 120 s in total: each address gets its share of what is left, and no more than 60 s.
    assert [round(timeout) for _, timeout in tried] == [30, 40, 60, 60]
