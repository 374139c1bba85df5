"""What reaches the host: the URL byte for byte, and the headers of the download."""

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.audio.download import UrlGuard
from deployments.contract.errors import AudioUrlError
from tests.support.downloads import SECRET, SOUND, download, url_error
from tests.support.misbehaving_server import (
    MisbehavingServer,
    answer_with,
    redirect_to,
)

# Paths and queries over which a host may have made a signature.
SIGNED = [
    "/a%2Fb/c%2fd",
    "/a/../b/./c//d",
    "/%7Euser/~user",
    "/it's(1)*!.mp3",
    "/a+b%20c?d=e+f%20g&h=%2B",
    "/a?X-Signature=AbC%2bdEf%3D&b='x'",
    "/a?b=c?d=/../e//f&&g=&=h",
    '/a?q=[1]{2}|3^4`5\\6"7<8>',
    "/%zz/%/100%",
    "/a;b=c,d:e@f",
    "//double//",
    "/?",
    "/a?",
    "/.",
    "/..",
]


def sent_line(server: MisbehavingServer, n: int = 0) -> str:
    """The target of the n-th request line."""
    method, target, version = server.requests[n].split("\r\n")[0].split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    return target


def header(server: MisbehavingServer, name: str, n: int = 0) -> str | None:
    """The value of a header that the n-th request has once at most."""
    values = re.findall(rf"(?mi)^{re.escape(name)}: (.*)\r$", server.requests[n])
    assert len(values) < 2
    return values[0] if values else None


@pytest.mark.parametrize("target", SIGNED)
def test_path_and_query_are_sent_as_they_are(
    server: MisbehavingServer, target: str
) -> None:
    server.answer(answer_with(body=SOUND))
    assert download(server.url(target)) == SOUND
    assert sent_line(server) == target


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#\\")
    )
)
def test_any_ascii_path_and_query_is_sent_as_it_is(
    server: MisbehavingServer, rest: str
) -> None:
    server.answer(answer_with(body=b"x"))
    download(server.url(f"/{rest}"))
    assert sent_line(server, -1) == f"/{rest}"


@pytest.mark.parametrize("target", SIGNED)
def test_the_location_of_a_redirect_is_sent_as_it_is(
    server: MisbehavingServer, target: str
) -> None:
    absolute = server.url(target)
    server.answer(redirect_to(absolute), answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert sent_line(server, 1) == target


@pytest.mark.parametrize("path", ["/voil\xe0", "/\xc5", "/\u9e05", "/\u4e20"])
def test_no_byte_of_a_location_beyond_ascii_is_lost(
    server: MisbehavingServer, path: str
) -> None:
    raw = path.encode()
    server.answer(redirect_to(raw.decode("latin-1")), answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert sent_line(server, 1) == quote(raw)


@pytest.mark.parametrize("target", SIGNED)
def test_a_url_is_sent_to_a_proxy_as_it_is(
    server: MisbehavingServer, target: str
) -> None:
    guard = UrlGuard(egress_proxy=server.url(""))
    server.answer(answer_with(body=SOUND))
    assert download(f"http://nonexistent.invalid{target}", guard=guard) == SOUND
    assert sent_line(server) == f"http://nonexistent.invalid{target}"
    assert header(server, "Host") == "nonexistent.invalid"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/caf\u00e9.mp3", "/caf%C3%A9.mp3"),
        ("/\u97f3?q=\U0001f3a7", "/%E9%9F%B3?q=%F0%9F%8E%A7"),
        ("/a b.mp3?c= d", "/a%20b.mp3?c=%20d"),
        ("/a%20\u00e9%c3", "/a%20%C3%A9%c3"),
        ("", "/"),
        ("?a=b", "/?a=b"),
        ("/a#fragment?b", "/a"),
        ("/a?b#c#d", "/a?b"),
        ("#c", "/"),
    ],
)
def test_only_what_http_cannot_carry_is_changed(
    server: MisbehavingServer, given: str, sent: str
) -> None:
    server.answer(answer_with(body=SOUND))
    assert download(server.url(given)) == SOUND
    assert sent_line(server) == sent


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        ("next.mp3", "/a%2fb/next.mp3"),
        ("./x//y?z=..", "/a%2fb/x//y?z=.."),
        ("../x/../y", "/x/../y"),
        ("../../../x", "/x"),
        ("..", "/"),
        (".?a", "/a%2fb/?a"),
        ("?q=1", "/a%2fb/c?q=1"),
        ("/r%2fs/../t", "/r%2fs/../t"),
        ("#part", "/a%2fb/c"),
        ("/t#part", "/t"),
        ("...", "/a%2fb/..."),
        ("/\u00e9", "/%E9"),
        ("/\u00c3\u00a9", "/%C3%A9"),
        ("/a b", "/a%20b"),
    ],
)
def test_a_relative_location_is_joined_without_further_changes(
    server: MisbehavingServer, location: str, sent: str
) -> None:
    # `redirect_to` sends each character as the byte of that number.
    server.answer(redirect_to(location), answer_with(body=SOUND))
    assert download(server.url("/a%2fb/c?old=1")) == SOUND
    assert sent_line(server, 1) == sent


def test_a_location_may_leave_out_the_scheme(server: MisbehavingServer) -> None:
    server.answer(
        redirect_to(server.url("/x")[len("http:") :]), answer_with(body=SOUND)
    )
    assert download(server.url()) == SOUND
    assert sent_line(server, 1) == "/x"


def test_a_redirect_without_a_location_is_reported(server: MisbehavingServer) -> None:
    server.answer(answer_with("302 x", body=b"SECRET"))
    assert url_error(server.url(SECRET)) == "HTTP 302 Found"


def test_a_long_url_with_odd_characters_is_sent_but_not_quoted(
    server: MisbehavingServer,
) -> None:
    server.answer(answer_with("404 x"))
    odd = '/\u97f3 \u00e9 X-Evil: 1%%20"<>|^`{}\U0001f3a7?signature=SECRET\\&'
    url = server.url(odd.ljust(5000, "x"))
    assert url_error(url) == "HTTP 404 Not Found"
    line, *headers = server.requests[0].split("\r\n")
    assert len(line) > 4900 and line.isascii() and line.isprintable()
    assert not [header for header in headers if header.startswith("X-Evil")]


def test_a_scheme_may_be_written_in_capitals(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    assert download(server.url().replace("http", "HTTP", 1)) == SOUND


def test_the_service_names_itself_and_not_its_library(
    server: MisbehavingServer,
) -> None:
    server.answer(redirect_to("/next"), answer_with(body=SOUND))
    download(server.url())
    for n in (0, 1):
        assert (header(server, "User-Agent", n) or "").startswith("whisper-serve")
        assert header(server, "Accept", n) == "*/*"


def test_credentials_in_the_url_are_sent_to_its_host_only(
    server: MisbehavingServer,
) -> None:
    with MisbehavingServer() as other:
        server.answer(redirect_to("/again"), redirect_to(other.url()))
        other.answer(answer_with(body=SOUND))
        url = server.url().replace("//", "//user:pa%20ss@", 1)
        assert download(url) == SOUND
        assert "Authorization: Basic dXNlcjpwYSBzcw==" in server.requests[0]
        assert "Authorization: Basic dXNlcjpwYSBzcw==" in server.requests[1]
        assert "Authorization" not in other.requests[0]


def test_credentials_may_hold_any_character(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    url = server.url().replace("//", "//us%3Aer:p@ss:w\u00f6rd@", 1)
    assert download(url) == SOUND
    token = base64.b64encode("us:er:p@ss:w\u00f6rd".encode()).decode()
    assert header(server, "Authorization") == f"Basic {token}"


def test_a_cookie_of_a_redirect_is_sent_back_to_its_path(
    server: MisbehavingServer,
) -> None:
    cookies = ("Set-Cookie: token=1; Path=/files", "Set-Cookie: other=2; Path=/x")
    server.answer(
        answer_with("302 x", headers=("Location: /files/a?b", *cookies)),
        answer_with(body=SOUND),
    )
    assert download(server.url()) == SOUND
    assert header(server, "Cookie", 1) == "token=1"


HEADERS = {
    "authorization": "Bearer SECRET",
    "Cookie": "id=SECRET",
    "User-Agent": "SECRET/1",
}


def test_headers_of_the_caller_are_sent(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    url = server.url().replace("//", "//user:password@", 1)
    assert download(url, headers=HEADERS) == SOUND
    for name, value in HEADERS.items():
        assert header(server, name) == value


def test_headers_of_the_caller_are_sent_again_at_each_try_and_to_the_same_origin(
    server: MisbehavingServer,
) -> None:
    cookie = answer_with("302 x", headers=("Location: /a", "Set-Cookie: more=1"))
    server.answer(answer_with("503 x"), cookie, answer_with(body=SOUND))
    assert download(server.url(), headers=HEADERS) == SOUND
    assert [header(server, "Authorization", n) for n in (0, 1, 2)] == [
        "Bearer SECRET"
    ] * 3
    assert header(server, "Cookie", 2) == "id=SECRET; more=1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_headers_of_the_caller_do_not_follow_to_another_origin(
    server: MisbehavingServer, host: str
) -> None:
    with MisbehavingServer() as other:
        back = redirect_to(server.url("/back"))
        port = other.port if host == "127.0.0.1" else server.port
        server.answer(redirect_to(f"http://{host}:{port}/"), answer_with(body=SOUND))
        other.answer(back)
        assert download(server.url(), headers=HEADERS) == SOUND
        requests = server.requests[1:] + other.requests
        assert requests
        assert "SECRET" in server.requests[0]
        assert not [head for head in requests if "SECRET" in head or "id=" in head]


def test_another_spelling_of_the_same_origin_keeps_the_headers(
    server: MisbehavingServer,
) -> None:
    upper = f"HTTP://LOCALHOST:{server.port}/next"
    server.answer(redirect_to(upper), answer_with(body=SOUND))
    url = f"http://localhost:{server.port}/"
    assert download(url, headers=HEADERS) == SOUND
    assert header(server, "Authorization", 1) == "Bearer SECRET"


@pytest.mark.parametrize("status", ["401 x", "403 x"])
def test_a_refusal_after_the_headers_were_left_behind_says_so(
    server: MisbehavingServer, status: str
) -> None:
    with MisbehavingServer() as other:
        server.answer(redirect_to(other.url()))
        other.answer(answer_with(status))
        with pytest.raises(AudioUrlError, match="gets neither audio_headers nor cred"):
            download(server.url(SECRET), headers=HEADERS)
        assert "origin" not in url_error(server.url(SECRET))


def test_headers_are_in_no_error(server: MisbehavingServer) -> None:
    for status in ("404 x", "500 x"):
        server.answer(answer_with(status))
        with pytest.raises(AudioUrlError) as caught:
            download(server.url(SECRET), headers=HEADERS)
        assert "SECRET" not in repr(caught.value) + str(caught.value)


@pytest.fixture
def proxy() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as proxy:
        proxy.answer(answer_with(body=SOUND))
        yield proxy


def test_a_proxy_of_the_environment_is_not_used(
    server: MisbehavingServer,
    proxy: MisbehavingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url(""))
    server.answer(redirect_to("/again"), answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert proxy.n_connections == 0


@pytest.mark.parametrize(
    "host", ["localhost", "127.9.8.7", "[::1]", "nonexistent.invalid"]
)
def test_a_proxy_of_the_configuration_fetches_everything(
    proxy: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    guard = UrlGuard(egress_proxy=proxy.url(""))
    proxy.answer(redirect_to(f"http://{host}:81/b.mp3"), answer_with(body=SOUND))
    assert download(f"http://{host}/a.mp3", guard=guard) == SOUND
    assert [sent_line(proxy, n) for n in (0, 1)] == [
        f"http://{host}/a.mp3",
        f"http://{host}:81/b.mp3",
    ]


def test_the_credentials_of_a_proxy_are_for_the_proxy(
    proxy: MisbehavingServer,
) -> None:
    url = proxy.url("").replace("//", "//user:pa%20ss@", 1)
    guard = UrlGuard(egress_proxy=url)
    assert download("http://nonexistent.invalid/a.mp3", guard=guard) == SOUND
    assert header(proxy, "Proxy-Authorization") == "Basic dXNlcjpwYSBzcw=="
    assert header(proxy, "Authorization") is None
