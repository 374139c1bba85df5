"""A Router that refuses a URL: when, with what answer, and what is counted. No Ray cluster."""

import socket
from typing import Any

import pytest

from deployments.contract.errors import AudioUrlError
from deployments.router import fetching
from tests.support.handles import Handle, events, transcript
from tests.support.misbehaving_server import MisbehavingServer, redirect_to
from tests.support.routers import router


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reasons that were counted."""
    reasons: list[str] = []

    monkeypatch.setattr(fetching, "count_refused_url", reasons.append)
    return reasons


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a.mp3", "malformed"),
        ("http://127.1/a.mp3", "malformed"),
        ("http://1.1.1.1:22/a.mp3", "port"),
        ("http://10.0.0.5/a.mp3", "not_public"),
    ],
)
async def test_a_url_that_needs_no_look_up_is_refused_before_the_first_stage(
    counted: list[str], url: str, reason: str
) -> None:
    handle = Handle(stream=[events(transcript())])
    asked = router(handle, allow_private_networks=False).events({"audio": url})
    with pytest.raises(AudioUrlError):
        await anext(asked)
    assert counted == [reason]


async def test_a_redirect_that_is_refused_is_counted_once(counted: list[str]) -> None:
    with MisbehavingServer() as server:
        server.answer(redirect_to("http://169.254.169.254/latest/meta-data/"))
        args: dict[str, Any] = {"allow_private_networks": False}
        args["allow_hosts"] = [f"127.0.0.1:{server.port}"]
        closed = router(Handle(stream=[events(transcript())]), **args)
        with pytest.raises(AudioUrlError, match="the host has no public address"):
            await closed.answer({"audio": server.url()})
    assert counted == ["not_public"]


async def test_a_name_is_looked_up_by_its_download_alone(
    counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "SECRET")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    closed = router(Handle(stream=[events(transcript())]), allow_private_networks=False)
    with pytest.raises(AudioUrlError, match="the host has no public address"):
        await closed.answer({"audio": "http://unknown.test/a.mp3"})
    assert asked == ["unknown.test"]
    assert counted == ["unresolved"]
