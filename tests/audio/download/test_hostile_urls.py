"""A collection of hostile and of harmless URLs: what is judged, and what is really connected to.

A row of hostile_urls.jsonl: `url`, `verdict` (refuse or allow), `kind`, `why`; `resolves`: by name,
the addresses, or the answers in turn; `redirects`: the Location values in order; and
`connects_only_to`: the addresses that may be dialled.
"""

import ipaddress
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deployments.audio.download import UrlGuard
from deployments.audio.download.addresses import is_public
from deployments.contract.errors import AudioHostError, AudioUrlError
from tests.support.downloads import ONE_TRY, SOUND, download
from tests.support.misbehaving_server import (
    MisbehavingServer,
    answer_with,
    redirect_to,
)

Row = dict[str, Any]
_LINES = (Path(__file__).parent / "hostile_urls.jsonl").read_text().splitlines()
ROWS: list[Row] = [json.loads(line) for line in _LINES]
EACH_ROW = pytest.mark.parametrize(
    "row", ROWS, ids=[f"{row['kind']}-{n}" for n, row in enumerate(ROWS)]
)
GUARD = UrlGuard(tick_s=0.001)


def test_the_collection_is_whole() -> None:
    assert len(ROWS) == 189
    assert sum(row["verdict"] == "refuse" for row in ROWS) > 100


@dataclass
class Names:
    """A resolver that knows the names of one row, each with its answers in turn."""

    row: Row
    asked: dict[str, int] = field(default_factory=dict)

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[Any]:
        name = host.rstrip(".")
        answers = self.row.get("resolves", {}).get(name)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "SECRET")
        if isinstance(answers[0], list):
            turn = self.asked[name] = self.asked.get(name, -1) + 1
            answers = answers[min(turn, len(answers) - 1)]
        return [_info(address, port) for address in answers]


def _info(address: str, port: int) -> Any:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)


@EACH_ROW
def test_the_verdict_is_right(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(row).getaddrinfo)
    assert _verdict(row) == row["verdict"], row["why"]


def _verdict(row: Row) -> str:
    """What the guard says, without a connection: the router strips the URL's blanks."""
    try:
        url = GUARD.read(row["url"].strip())
        GUARD.endpoints(url.host, url.port, 60, lambda _: None)
        for location in row.get("redirects", ()):
            url = GUARD.follow(url, location)
            GUARD.endpoints(url.host, url.port, 60, lambda _: None)
    except AudioUrlError:
        return "refuse"
    return "allow"


@pytest.fixture
def dialled(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Every address that a socket was told to connect to; the local server answers for port 80."""
    addresses: list[str] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, sockaddr: tuple[Any, ...]) -> None:
        addresses.append(sockaddr[0])
        if self.family != socket.AF_INET or sockaddr[1] != 80:
            raise ConnectionRefusedError
        connect(self, ("127.0.0.1", server.port))

    def unexpected(*_: object) -> None:
        raise AssertionError("connected in a way that is not recorded")

    monkeypatch.setattr(socket.socket, "connect", recorded)
    monkeypatch.setattr(socket.socket, "connect_ex", unexpected)
    monkeypatch.setattr(socket, "create_connection", unexpected)
    yield addresses


@EACH_ROW
def test_only_what_may_be_fetched_is_connected_to(
    row: Row,
    server: MisbehavingServer,
    dialled: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(row).getaddrinfo)
    hops = row.get("redirects", [])
    server.answer(*map(redirect_to, hops), answer_with(body=SOUND))
    try:
        download(row["url"].strip(), ONE_TRY, guard=GUARD)
        outcome = "allow"
    except AudioHostError:
        # The connection was tried, and refused by this test.
        outcome = "allow"
    except AudioUrlError:
        outcome = "refuse"
    assert outcome == row["verdict"], row["why"]
    assert all(is_public(ipaddress.ip_address(address)) for address in dialled)
    if "connects_only_to" in row:
        assert set(dialled) == set(row["connects_only_to"])
    if row["verdict"] == "refuse":
        # Of a chain of redirects, the hops before the one that is refused.
        assert len(dialled) == len(hops)
    else:
        assert dialled
