"""Hosts that send, but too slowly."""

import time
from dataclasses import replace

import pytest

from deployments.audio.download.throughput import HostThroughput
from tests.support.downloads import (
    IMPATIENT,
    LIMITS,
    OK_CHUNKED,
    OK_UNTIL_CLOSE,
    PATIENCE_S,
    SECRET,
    SOUND,
    download,
    host_error,
    seconds_since,
)
from tests.support.misbehaving_server import (
    MisbehavingServer,
    answer_with,
    endless,
    hosted,
    raw,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"
LEAST = replace(LIMITS, min_bytes_per_s=2048.0, throughput_window_s=0.3)
TOO_SLOW = (
    "the host sends too slowly: less than 2 KiB a second over 0.3 s (min_bytes_per_s)"
)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (OK, b"x"),
        (OK_UNTIL_CLOSE, b"x"),
        (OK_CHUNKED, b"1\r\nx\r\n"),
        (OK_CHUNKED + b"8000\r\n", b"x"),
    ],
)
def test_a_dripping_body_is_too_slow_and_no_further_try_is_made(
    server: MisbehavingServer,
    caplog: pytest.LogCaptureFixture,
    head: bytes,
    part: bytes,
) -> None:
    server.answer(endless(head, part, every_s=0.05))
    start = time.monotonic()
    assert host_error(server.url(SECRET), LEAST) == TOO_SLOW
    assert 0.3 <= seconds_since(start) < PATIENCE_S
    assert server.n_connections == 1
    assert "event=download_too_slow bytes=" in caplog.text


def test_a_body_that_stops_is_too_slow_too(server: MisbehavingServer) -> None:
    server.answer(raw(OK, b"x" * 1000, then_wait_s=PATIENCE_S))
    assert host_error(server.url(), LEAST) == TOO_SLOW


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 302"])
def test_headers_that_drip_end_as_well(server: MisbehavingServer, head: bytes) -> None:
    server.answer(endless(head, b"x", every_s=0.05))
    limits = replace(LEAST, read_timeout_s=0.2)
    start = time.monotonic()
    assert host_error(server.url(), limits) == TOO_SLOW
    assert 0.5 <= seconds_since(start) < PATIENCE_S


def test_each_window_is_judged_by_itself() -> None:
    now = 0.0
    limits = replace(LIMITS, min_bytes_per_s=100.0, throughput_window_s=30.0)
    throughput = HostThroughput(limits, clock=lambda: now)
    throughput.answer_begun()
    for now in (29.0, 30.0, 60.0):  # noqa: B007 - the clock gives it
        # All at once, as a host does that makes the file while it sends.
        throughput.received(3100)
        assert not throughput.too_slow()
    now = 89.0
    throughput.received(2800)
    assert not throughput.too_slow()
    now = 90.0
    assert throughput.too_slow()
    throughput.received(1_000_000)
    assert throughput.too_slow()


def test_the_wait_for_an_answer_is_not_slowness(server: MisbehavingServer) -> None:
    late = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server.answer(raw(b"", late + SOUND[:1000], every_s=0.7))
    assert download(server.url(), LEAST) == SOUND[:1000]


def test_the_wait_between_tries_is_not_slowness(server: MisbehavingServer) -> None:
    server.answer(answer_with("503 x"), answer_with(body=SOUND))
    limits = replace(LEAST, back_offs_s=(0.8,))
    assert download(server.url(), limits) == SOUND


def test_silence_within_a_window_is_told_as_silence_and_gone_on_from(
    server: MisbehavingServer,
) -> None:
    def stalls(connection: object) -> None:
        raw(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(SOUND)}\r\n".encode(),
            b'ETag: "v1"\r\n\r\n' + SOUND[:1000],
            then_wait_s=PATIENCE_S,
        )(connection)  # type: ignore[arg-type]

    server.answer(stalls, hosted(SOUND))
    limits = replace(IMPATIENT, min_bytes_per_s=1e6, throughput_window_s=30.0)
    assert download(server.url(), limits) == SOUND
    assert "Range: bytes=1000-" in server.requests[1]


def test_without_a_minimum_any_host_has_the_whole_time(
    server: MisbehavingServer,
) -> None:
    server.answer(endless(OK, b"x", every_s=0.05))
    limits = replace(LEAST, min_bytes_per_s=0.0, total_timeout_s=0.8)
    assert host_error(server.url(), limits) == "timed out after 0.8 s in total"
