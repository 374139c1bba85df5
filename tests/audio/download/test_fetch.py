"""The download against a real local server that misbehaves in every way it can."""

import errno
import io
import ipaddress
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.audio.download import UrlGuard, fetch_audio
from deployments.audio.download.url_guard import NO_PUBLIC_ADDRESS
from deployments.contract.errors import (
    AudioUrlError,
    RequestCancelledError,
)
from tests.support.downloads import (
    IMPATIENT,
    LIMITS,
    NO_URL,
    OK_CHUNKED,
    OK_UNTIL_CLOSE,
    ONE_TRY,
    ONLY_HTTP,
    PATIENCE_S,
    PRIVATE,
    SECRET,
    SOUND,
    TOO_LARGE,
    download,
    host_error,
    open_files,
    seconds_since,
    url_error,
)
from tests.support.misbehaving_server import (
    Connection,
    MisbehavingServer,
    answer_with,
    endless,
    raw,
    redirect_to,
    reset_at_accept,
    silent_at_accept,
)

BLANK_OR_BACKSLASH = "it holds a blank or a backslash that must be percent-encoded"
CONTROL = "it holds a control character that must be percent-encoded"
DECIMAL = "write the host's address as four decimal numbers without leading zeros"


def test_a_file_arrives_whole_and_can_be_sought(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    with fetch_audio(server.url(SECRET), LIMITS, guard=PRIVATE) as file:
        assert file.read() == SOUND
        assert file.seek(100) == 100
        assert file.read(3) == SOUND[100:103]


def test_the_file_has_no_name_while_it_is_in_use(
    server: MisbehavingServer, temporary_folder: Path
) -> None:
    server.answer(answer_with(body=SOUND))
    with fetch_audio(server.url(), LIMITS, guard=PRIVATE):
        assert os.listdir(temporary_folder) == []
        assert [p for p in open_files() if p.startswith(str(temporary_folder))]


def test_the_file_is_gone_when_its_user_fails(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    with (
        pytest.raises(RuntimeError),
        fetch_audio(server.url(), LIMITS, guard=PRIVATE) as file,
    ):
        raise RuntimeError("decoding")
    assert file.closed


def test_a_wrong_content_type_does_not_matter(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND, headers=("Content-Type: text/html",)))
    assert download(server.url()) == SOUND


def test_a_body_that_ends_with_the_connection_is_whole(
    server: MisbehavingServer,
) -> None:
    server.answer(raw(OK_UNTIL_CLOSE, SOUND))
    assert download(server.url()) == SOUND


def test_twenty_redirects_are_followed(server: MisbehavingServer) -> None:
    hops = [redirect_to(f"/hop{i}") for i in range(20)]
    server.answer(*hops, answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert server.requests[20].startswith("GET /hop19 ")


def test_a_redirect_loop_is_the_urls_fault(server: MisbehavingServer) -> None:
    server.answer(redirect_to(SECRET))
    assert url_error(server.url(SECRET)) == "more than 20 redirects"
    assert server.n_connections == 21


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/speech.mp3", "data:,x"]
)
def test_a_redirect_out_of_http_is_refused(
    server: MisbehavingServer, target: str
) -> None:
    server.answer(redirect_to(target))
    assert url_error(server.url()) == ONLY_HTTP
    assert server.n_connections == 1


def test_the_body_of_a_redirect_is_never_read(server: MisbehavingServer) -> None:
    sent: list[int] = []

    def endless_redirect(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 302 Found\r\nLocation: /next\r\n\r\n")
        while connection.open:
            connection.send(SOUND)
            sent.append(len(SOUND))

    server.answer(endless_redirect, answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert sum(sent) < 32 << 20


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "C:\\a.mp3"])
def test_another_scheme_is_refused(url: str) -> None:
    assert url_error(url) == ONLY_HTTP


@pytest.mark.parametrize("text", ["speech.mp3", "/speech.mp3", "www.host.com/a.mp3"])
def test_a_text_that_is_no_url_is_told_what_to_give(text: str) -> None:
    assert url_error(text) == NO_URL


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "no host"),
        ("http:/host/a", "no host"),
        ("http:host/a", "no host"),
        ("http://[::1/a", "what follows the host is no port"),
        ("http://host:99999/", "the port must be a number from 1 to 65535"),
        ("http://host:0/", "the port must be a number from 1 to 65535"),
        ("http://host:80a/", "what follows the host is no port"),
        ("http://host:+80/", "what follows the host is no port"),
        ("http://a b/", BLANK_OR_BACKSLASH),
        ("http://u:p @host/", BLANK_OR_BACKSLASH),
        ("http://host\\@evil/", BLANK_OR_BACKSLASH),
        ("http://host/a\\b", BLANK_OR_BACKSLASH),
        ("https://.x/", "the host is no valid name"),
        ("https://a..b/", "the host is no valid name"),
        ("https://a%2eb/", "the host is no valid name"),
        ("https://\u24d0.example/", "the host is no valid name"),
        ("http://[fe80::1%25eth0]/", "the host is no valid IPv6 address"),
        ("http://[1.2.3.4]/", "the host is no valid IPv6 address"),
        ("http://2130706433/", DECIMAL),
        ("http://0x7f.1/", DECIMAL),
        ("http://127.0.0.01/", DECIMAL),
        ("http://1\u30022\u30023\u30024/", "the host is no valid name"),
        ("http://host/a\r\nX-Evil: 1", CONTROL),
        ("http://host/a\tb", CONTROL),
        ("http://host/a\x00", CONTROL),
        ("http://ho\u2028st/", CONTROL),
        ("\ufeffhttp://host/", CONTROL),
        ("http://host/" + "a" * 8192, "longer than 8192 characters"),
    ],
)
def test_a_malformed_url_is_told_what_is_wrong_with_it(url: str, reason: str) -> None:
    assert url_error(url) == f"malformed URL: {reason}"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://[::1/a", "what follows the host is no port"),
        ("/a\\b", BLANK_OR_BACKSLASH),
        ("/a\tb", CONTROL),
    ],
)
def test_a_redirect_to_a_malformed_url_is_reported(
    server: MisbehavingServer, location: str, reason: str
) -> None:
    server.answer(redirect_to(location))
    assert url_error(server.url()) == f"malformed URL: {reason}"


@pytest.mark.parametrize(
    "status, reason",
    [
        ("404 <script>SECRET</script>", "HTTP 404 Not Found"),
        ("403 ", "HTTP 403 Forbidden"),
        ("415 x", "HTTP 415 Unsupported Media Type"),
        ("499 SECRET", "HTTP 499"),
        ("304 x", "HTTP 304 Not Modified"),
        ("999 SECRET", "HTTP 999"),
    ],
)
def test_a_refusal_is_reported_in_our_words_and_not_retried(
    server: MisbehavingServer, status: str, reason: str
) -> None:
    server.answer(answer_with(status, body=b"SECRET"))
    assert url_error(server.url(SECRET)) == reason
    assert server.n_connections == 1


@pytest.mark.parametrize(
    "statuses",
    [
        ("429 x",),
        ("500 x", "500 x"),
        ("503 x",),
        ("502 x", "429 x"),
        ("425 x", "408 x"),
    ],
)
def test_an_overloaded_host_gets_another_try(
    server: MisbehavingServer, statuses: tuple[str, ...]
) -> None:
    failures = [answer_with(status) for status in statuses]
    server.answer(*failures, answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert server.n_connections == len(statuses) + 1


@pytest.mark.parametrize(
    "status, reason",
    [
        ("500 SECRET", "HTTP 500 Internal Server Error"),
        ("429 x", "HTTP 429 Too Many Requests"),
        ("599 x", "HTTP 599"),
    ],
)
def test_a_host_that_stays_overloaded_gets_three_tries(
    server: MisbehavingServer,
    log: pytest.LogCaptureFixture,
    status: str,
    reason: str,
) -> None:
    server.answer(answer_with(status, body=b"SECRET"))
    assert host_error(server.url(SECRET)) == reason
    assert server.n_connections == 3
    assert log.messages == [
        f'event=download_retry wait=0.01 reason="{reason}"',
        f'event=download_retry wait=0.02 reason="{reason}"',
    ]


def waits(log: pytest.LogCaptureFixture) -> list[float]:
    """The seconds of each wait that was logged."""
    found = re.findall(r"event=download_retry wait=(\S+)", log.text)
    return [float(wait) for wait in found]


@pytest.mark.parametrize("status", ["429 x", "503 x"])
def test_a_host_that_asks_to_wait_is_obeyed(
    server: MisbehavingServer, log: pytest.LogCaptureFixture, status: str
) -> None:
    busy = answer_with(status, headers=("Retry-After: 1",))
    server.answer(busy, answer_with(body=SOUND))
    start = time.monotonic()
    assert download(server.url()) == SOUND
    assert seconds_since(start) >= 1.0
    assert waits(log) == [1]


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [
        (90, ("Retry-After: 90",)),
        (
            75,
            (
                "Date: Fri, 31 Dec 1999 23:59:00 GMT",
                "Retry-After: Sat, 01 Jan 2000 00:00:15 GMT",
            ),
        ),
    ],
)
def test_a_wait_of_more_than_a_minute_is_begun_where_the_deadline_allows_it(
    server: MisbehavingServer,
    log: pytest.LogCaptureFixture,
    seconds: int,
    headers: tuple[str, ...],
) -> None:
    server.answer(answer_with("503 x", headers=headers), answer_with(body=SOUND))
    with pytest.raises(RequestCancelledError):
        download(server.url(), LIMITS, lambda: waits(log) != [])
    assert waits(log) == [seconds]


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [
        (121, ("Retry-After: 121",)),
        (999_999_999, ("Retry-After: 999999999",)),
        (
            3600,
            (
                "Date: Fri, 31 Dec 1999 23:00:00 GMT",
                "Retry-After: Sat, 01 Jan 2000 00:00:00 GMT",
            ),
        ),
    ],
)
def test_a_wait_beyond_the_deadline_fails_at_once(
    server: MisbehavingServer, seconds: int, headers: tuple[str, ...]
) -> None:
    server.answer(answer_with("429 x", headers=headers))
    assert host_error(server.url(SECRET)) == (
        f"HTTP 429 Too Many Requests; the host asks to wait {seconds} s, which is longer than"
        " this download may take (120 s)"
    )
    assert server.n_connections == 1


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "-1", "1e3", "\u00b2", "soon", "Fri, 31 Dec 1999 23:59:59 GMT", ""],
)
def test_an_odd_or_past_retry_after_is_ignored(
    server: MisbehavingServer, log: pytest.LogCaptureFixture, value: str
) -> None:
    busy = answer_with("503 x", headers=(f"Retry-After: {value}",))
    server.answer(busy, answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert waits(log) == [0.01]


def test_a_claimed_length_over_the_cap_is_refused_unread(
    server: MisbehavingServer,
) -> None:
    def without_body(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n")
        connection.wait(5)

    server.answer(without_body)
    assert url_error(server.url()) == TOO_LARGE
    assert server.n_connections == 1


def test_a_body_of_exactly_the_cap_is_taken(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    assert download(server.url(), replace(LIMITS, max_bytes=len(SOUND))) == SOUND


def test_an_endless_chunked_body_stops_at_the_cap(server: MisbehavingServer) -> None:
    server.answer(endless(OK_CHUNKED, b"10000\r\n" + bytes(65536) + b"\r\n"))
    assert url_error(server.url()) == TOO_LARGE


def test_an_endless_unframed_body_stops_at_the_cap(server: MisbehavingServer) -> None:
    server.answer(endless(OK_UNTIL_CLOSE, bytes(65536)))
    limits = replace(LIMITS, max_bytes=1000)
    assert "larger than the limit of 1000 bytes" in url_error(server.url(), limits)


@pytest.mark.parametrize(
    ("cap", "text"),
    [(1 << 30, "1 GiB"), (5 << 20, "5 MiB"), (3 << 10, "3 KiB"), (1500, "1500 bytes")],
)
def test_the_cap_is_named_in_its_largest_whole_unit(
    server: MisbehavingServer, cap: int, text: str
) -> None:
    server.answer(answer_with(length=cap + 1))
    limits = replace(LIMITS, max_bytes=cap)
    assert f"larger than the limit of {text} (" in url_error(server.url(), limits)


def test_an_empty_body_is_the_urls_fault(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=b""))
    assert url_error(server.url()) == "the file is empty"


DRIPS = {
    "body of known length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
    "body that ends with the connection": (OK_UNTIL_CLOSE, b"x"),
    "chunked body": (OK_CHUNKED, b"1\r\nx\r\n"),
    "chunk size": (OK_CHUNKED, b"0"),
    "headers": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status line": (b"HTTP/1.1 302", b" "),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_dripping_host_meets_the_total_deadline(
    server: MisbehavingServer, drip: str
) -> None:
    head, part = DRIPS[drip]
    server.answer(endless(head, part, every_s=0.05))
    limits = replace(LIMITS, total_timeout_s=0.3)
    start = time.monotonic()
    assert host_error(server.url(SECRET), limits) == "timed out after 0.3 s in total"
    assert 0.3 <= seconds_since(start) < PATIENCE_S
    assert server.n_connections <= 1


def test_the_total_deadline_covers_back_offs(server: MisbehavingServer) -> None:
    server.answer(answer_with("500 x"))
    limits = replace(LIMITS, total_timeout_s=0.3, back_offs_s=(3600.0,))
    start = time.monotonic()
    assert host_error(server.url(), limits) == "timed out after 0.3 s in total"
    assert 0.3 <= seconds_since(start) < PATIENCE_S


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", OK_CHUNKED + b"1\r"]
)
def test_a_silent_host_meets_the_read_deadline(
    server: MisbehavingServer, start: bytes
) -> None:
    server.answer(raw(start, then_wait_s=5))
    reason = host_error(server.url(), IMPATIENT)
    assert reason == "timed out after 0.2 s without data"
    assert server.n_connections == 1


def test_a_host_that_does_not_accept_meets_the_connect_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        reason = host_error(f"http://127.0.0.1:{port}/", IMPATIENT)
        for sock in waiting:
            sock.close()
    assert reason == "timed out after 0.2 s without a connection"


def test_a_silent_tls_handshake_meets_the_connect_deadline(
    server: MisbehavingServer,
) -> None:
    server.answer(silent_at_accept)
    reason = host_error(server.url(scheme="https"), IMPATIENT)
    assert reason == "timed out after 0.2 s without a connection"


def test_a_host_without_tls_is_reported(server: MisbehavingServer) -> None:
    server.answer(lambda connection: connection.send(OK_UNTIL_CLOSE))
    assert host_error(server.url(scheme="https")) == "TLS connection failed"


def test_an_untrusted_certificate_is_reported_and_not_retried(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own_certificate(tmp_path))

    def over_tls(connection: Connection) -> None:
        context.wrap_socket(connection.sock, server_side=True)

    server.answer(over_tls)
    reason = host_error(server.url(SECRET, scheme="https"))
    assert reason == "TLS certificate not valid"
    assert server.n_connections == 1


@pytest.mark.parametrize("name", ["nonexistent.invalid", "other.invalid"])
def test_the_certificate_must_be_that_of_the_name(
    server: MisbehavingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    certificate = own_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    asked_for: list[str | None] = []
    context.sni_callback = lambda _sock, name, _context: asked_for.append(name)

    def over_tls(connection: Connection) -> None:
        with context.wrap_socket(connection.sock, server_side=True) as tls:
            answer_with(body=SOUND)(Connection(tls, connection.server))

    def getaddrinfo(_: str, port: int, **__: object) -> object:
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    server.answer(over_tls)
    url = f"https://{name}:{server.port}/a.mp3"
    if name == "nonexistent.invalid":
        assert download(url) == SOUND
    else:
        assert host_error(url) == "TLS certificate not valid"
    assert asked_for == [name]


def test_a_dripping_host_meets_the_total_deadline_over_tls(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = own_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def drip_over_tls(connection: Connection) -> None:
        with context.wrap_socket(connection.sock, server_side=True) as tls:
            drip = endless(OK_UNTIL_CLOSE, b"x", every_s=0.05)
            drip(Connection(tls, connection.server))

    server.answer(drip_over_tls)
    limits = replace(LIMITS, total_timeout_s=2.0)
    reason = host_error(server.url(scheme="https"), limits)
    assert reason == "timed out after 2 s in total"
    assert len(server.requests) == 1


def test_a_url_goes_through_the_tunnel_of_a_proxy_as_it_is(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = own_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    guard = UrlGuard(egress_proxy=server.url(""))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def tunnel(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(connection.sock, server_side=True) as tls:
            answer_with(body=SOUND)(Connection(tls, connection.server))

    server.answer(tunnel)
    url = "https://nonexistent.invalid/a%2fb/../c?d='SECRET'"
    assert download(url, headers={"X-Key": "SECRET"}, guard=guard) == SOUND
    to_proxy, to_host = server.requests
    assert to_proxy.startswith("CONNECT nonexistent.invalid:443 ")
    assert "SECRET" not in to_proxy
    assert to_host.startswith("GET /a%2fb/../c?d='SECRET' HTTP/1.1\r\n")
    assert "\r\nX-Key: SECRET\r\n" in to_host


def own_certificate(folder: Path) -> Path:
    """A self-signed certificate for the names of these tests and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("nonexistent.invalid"),
    ]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


CUT_SHORT = answer_with(body=SOUND[:300_000], length=len(SOUND))
CUT_CHUNK = raw(OK_CHUNKED, b"10000\r\n", SOUND[:1000])


@pytest.mark.parametrize("cut", [reset_at_accept, CUT_SHORT, CUT_CHUNK, raw(b"")])
def test_a_cut_connection_gets_another_try_from_the_start(
    server: MisbehavingServer, cut: Callable[[Connection], None]
) -> None:
    server.answer(cut, cut, answer_with(body=b"shorter than what came before"))
    assert download(server.url()) == b"shorter than what came before"
    assert server.n_connections == 3


@pytest.mark.parametrize("cut", [reset_at_accept, CUT_SHORT, CUT_CHUNK, raw(b"")])
def test_a_connection_that_is_always_cut_is_reported(
    server: MisbehavingServer, cut: Callable[[Connection], None]
) -> None:
    server.answer(cut)
    assert host_error(server.url(SECRET)) == "connection cut"
    assert server.n_connections == 3


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNRESET, "connection cut"),
        (errno.EHOSTUNREACH, "host cannot be reached"),
    ],
)
def test_a_connection_that_fails_while_it_is_made_is_reported(
    monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def connect(*_: object) -> None:
        raise OSError(number, "SECRET")

    # A host's reset comes this early only where its process runs before ours goes on.
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert host_error("http://127.0.0.1" + SECRET) == reason


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6 SECRET\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_reported(
    server: MisbehavingServer, answer: bytes
) -> None:
    server.answer(raw(answer, then_wait_s=0.1))
    assert host_error(server.url(SECRET)) == "answer is not valid HTTP"


def test_malformed_headers_do_not_bring_the_url_into_the_log(
    server: MisbehavingServer, log: pytest.LogCaptureFixture
) -> None:
    # As RunPod's SDK does when it is imported.
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nno colon SECRET\r\n\r\n"
    server.answer(raw(head + b"x"))
    download(server.url(SECRET))
    assert log.messages == []


def test_a_closed_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert host_error(f"http://127.0.0.1:{port}{SECRET}") == "connection refused"


def test_a_netrc_file_is_never_read(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.answer(redirect_to("/again"), answer_with(body=SOUND))
    assert download(server.url()) == SOUND
    assert not [head for head in server.requests if "Authorization" in head]


@pytest.mark.parametrize(
    "head, every_s",
    [
        (OK_UNTIL_CLOSE, 0.01),
        (OK_UNTIL_CLOSE, 3600.0),
        (b"HTTP/1.1 200 OK\r\nX: ", 0.05),
    ],
    ids=["in a flowing body", "in a silent body", "in dripping headers"],
)
def test_cancelling_ends_the_download(
    server: MisbehavingServer, head: bytes, every_s: float
) -> None:
    server.answer(endless(head, b"x" * 100, every_s))
    start = time.monotonic()
    with pytest.raises(RequestCancelledError, match="^The request was cancelled$"):
        download(server.url(), LIMITS, lambda: seconds_since(start) > 0.2)
    assert seconds_since(start) < PATIENCE_S
    assert server.n_connections <= 1


def test_cancelling_ends_a_back_off(server: MisbehavingServer) -> None:
    server.answer(answer_with("503 x"))
    limits = replace(LIMITS, back_offs_s=(3600.0,))
    start = time.monotonic()
    with pytest.raises(RequestCancelledError):
        download(server.url(), limits, lambda: seconds_since(start) > 0.2)
    assert seconds_since(start) < PATIENCE_S
    assert server.n_connections <= 1


def test_a_download_cancelled_before_it_starts_sends_nothing(
    server: MisbehavingServer,
) -> None:
    with pytest.raises(RequestCancelledError):
        download(server.url(), LIMITS, lambda: True)
    assert server.n_connections == 0


def test_a_full_disk_is_no_fault_of_the_url_or_its_host(
    server: MisbehavingServer,
) -> None:
    class FullDisk(io.BytesIO):
        def __init__(self, buffering: int = 0) -> None:
            super().__init__()

        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    server.answer(answer_with(body=SOUND))
    with (
        mock.patch("tempfile.TemporaryFile", FullDisk),
        pytest.raises(OSError, match="No space left on device"),
    ):
        download(server.url())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    url=st.text()
    | st.text().map("http://".__add__)
    | st.text().map("https://u:p@[".__add__)
)
def test_any_url_ends_in_a_download_error(url: str) -> None:
    unresolved = socket.gaierror(socket.EAI_NONAME, "SECRET")
    with (
        mock.patch("socket.getaddrinfo", side_effect=unresolved),
        pytest.raises(AudioUrlError) as caught,
    ):
        download(url, ONE_TRY)
    assert caught.value.args[0] in (
        ONLY_HTTP,
        NO_URL,
        NO_PUBLIC_ADDRESS,
    ) or caught.value.args[0].startswith("malformed URL: ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(location=st.binary(min_size=1) | st.binary().map(b"http://".__add__))
def test_any_redirect_ends_in_a_download_error(
    server: MisbehavingServer, location: bytes
) -> None:
    target = location.replace(b"\r", b"").replace(b"\n", b"")
    head = b"HTTP/1.1 302 x\r\nContent-Length: 0\r\nLocation: " + target + b"\r\n\r\n"
    server.answer(raw(head))
    with (
        mock.patch("socket.getaddrinfo", only_local_addresses),
        pytest.raises(AudioUrlError) as caught,
    ):
        download(server.url(), ONE_TRY)
    assert caught.value.args[0].isascii()


real_getaddrinfo = socket.getaddrinfo


def only_local_addresses(host: str, port: int, type: int) -> object:
    if host != "127.0.0.1":
        raise socket.gaierror(socket.EAI_NONAME, "SECRET")
    return real_getaddrinfo(host, port, type=type)
