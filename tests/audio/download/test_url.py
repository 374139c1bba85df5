"""The host of a URL: what is read as one is read alike by every other program."""

import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import idna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from deployments.audio.download.url import HttpUrl
from deployments.contract.errors import AudioUrlError

# Of what odd hosts are made.
PIECES = st.sampled_from(
    [*"0123456789abcdefxX.-_:/?#@[]%\\ \t\r\n;,|*&=+'\"<>", "http", "//", "127.0.0.1"]
    + [
        "[::1]",
        "xn--",
        "\u3002",
        "\uff0e",
        "\u2100",
        "\uff0f",
        "\uff20",
        "\xad",
        "\x00",
    ]
    + [
        "\u2028",
        "\ufeff",
        "\x85",
        "\xa0",
        "%2f",
        "%00",
        ":80",
        "example.com",
        "\xe9",
        "ß",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
@example("user@host:80@other:81/a")
@example("1.2.3.4.:80")
@example("[::ffff:1.2.3.4]")
@example("b\xfccher.example")
@example("EXAMPLE.com.")
@example("a#@127.0.0.1/")
@example("a?@127.0.0.1/")
@example("a;b@127.0.0.1")
def test_every_parser_reads_the_same_host_and_port(rest: str) -> None:
    url = f"http://{rest}"
    try:
        read = HttpUrl.parse(url)
    except AudioUrlError:
        return
    for host, port in others(url):
        assert (compared(host), port or 80) == (compared(read.host), read.port)
    # What requests and urllib3 are told leaves nothing to be read in another way.
    told = parse_url(read.origin)
    assert (told.host or "").strip("[]") == read.host == urlsplit(read.origin).hostname
    assert (told.port or 80) == read.port
    assert (told.auth, told.path, told.query) == (None, None, None)


def others(url: str) -> Iterator[tuple[str | None, int | None]]:
    """What other parsers read, where they do: some refuse odd characters before an `@`."""
    with suppress(ValueError):
        standard = urlsplit(url)
        yield standard.hostname, standard.port
    with suppress(LocationParseError):
        urllib3 = parse_url(url)
        yield urllib3.host, urllib3.port


def compared(host: str | None) -> str:
    """A host in the form in which two parsers' readings can be compared."""
    text = (host or "").strip("[]").lower()
    if not text.isascii():
        text = idna.encode(text).decode()
    try:
        return str(ipaddress.ip_address(text.removesuffix(".")))
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("HTTP://Example.COM:80/a", "http://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("https://example.com:8443/", "https://example.com:8443"),
        ("http://example.com:/a", "http://example.com"),
        ("http://example.com:0080/a", "http://example.com"),
        ("http://user:pw@example.com?a", "http://example.com"),
        ("http://[0:0::0001]:81/", "http://[::1]:81"),
        ("http://1.2.3.4./", "http://1.2.3.4"),
        ("http://b\xfccher.example/", "http://xn--bcher-kva.example"),
        ("http://under_score.example/", "http://under_score.example"),
        ("http://example.com./", "http://example.com."),
    ],
)
def test_an_origin_has_one_form(url: str, origin: str) -> None:
    assert HttpUrl.parse(url).origin == origin
