"""A Content-Encoding that nobody asked for, true or false."""

import gzip
import zlib

import pytest

from tests.support.downloads import (
    LIMITS,
    OK_CHUNKED,
    SOUND,
    TOO_LARGE,
    download,
    host_error,
    url_error,
)
from tests.support.misbehaving_server import MisbehavingServer, answer_with, raw

DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
RAW_DEFLATE = DEFLATE.compress(SOUND) + DEFLATE.flush()
HALF = len(SOUND) // 2


def encoded(coding: str) -> str:
    return f"Content-Encoding: {coding}"


def test_the_file_is_asked_for_without_an_encoding(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=SOUND))
    download(server.url())
    assert "\r\nAccept-Encoding: identity\r\n" in server.requests[0]
    assert server.requests[0].lower().count("accept-encoding") == 1


def test_chunked_and_compressed_bodies_are_undone(server: MisbehavingServer) -> None:
    packed = gzip.compress(SOUND)
    chunk = b"%x\r\n%s\r\n" % (len(packed), packed)
    head = OK_CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    server.answer(raw(head, chunk, b"0\r\n\r\n"))
    assert download(server.url()) == SOUND


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(SOUND)),
        ("X-GZip", gzip.compress(SOUND)),
        ("gzip", gzip.compress(SOUND[:HALF]) + gzip.compress(SOUND[HALF:])),
        ("gzip", gzip.compress(SOUND) + bytes(100)),
        ("deflate", zlib.compress(SOUND)),
        ("deflate", RAW_DEFLATE),
        ("gzip, identity", gzip.compress(SOUND)),
        ("deflate, gzip", gzip.compress(zlib.compress(SOUND))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_that_is_encoded_as_it_says_is_decoded(
    server: MisbehavingServer, coding: str, body: bytes
) -> None:
    server.answer(answer_with(body=body, headers=(encoded(coding),)))
    assert download(server.url()) == SOUND


@pytest.mark.parametrize(
    "coding",
    ["gzip", "x-gzip", "deflate", "br", "zstd", "utf-8", "aws-chunked", "none"],
)
@pytest.mark.parametrize("body", [SOUND, b"RIFF" + SOUND, b"x", b"OggS" + SOUND])
def test_a_file_that_is_not_encoded_as_it_says_is_taken_as_it_is(
    server: MisbehavingServer, coding: str, body: bytes
) -> None:
    server.answer(answer_with(body=body, headers=(encoded(coding),)))
    assert download(server.url()) == body


def test_a_file_that_is_encoded_fewer_times_than_it_says_is_decoded_as_often_as_it_is(
    server: MisbehavingServer,
) -> None:
    body = gzip.compress(SOUND)
    server.answer(answer_with(body=body, headers=(encoded("gzip, gzip"),)))
    assert download(server.url()) == SOUND


def test_a_body_that_is_really_zstd_is_refused_with_the_reason(
    server: MisbehavingServer,
) -> None:
    body = b"\x28\xb5\x2f\xfd" + SOUND
    server.answer(answer_with(body=body, headers=(encoded("zstd"),)))
    assert host_error(server.url()) == (
        "the host compressed the file with zstd, which was not asked for"
    )


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(SOUND)[:-20]),
        ("gzip", gzip.compress(SOUND)[:500] + b"\xff" * 50),
        ("gzip", gzip.compress(SOUND)[:-8] + bytes(8)),
        ("deflate", zlib.compress(SOUND)[:-20]),
    ],
    ids=["cut", "overwritten", "with a wrong checksum", "cut deflate"],
)
def test_an_encoded_body_that_is_damaged_is_the_hosts_fault(
    server: MisbehavingServer, coding: str, body: bytes
) -> None:
    server.answer(answer_with(body=body, headers=(encoded(coding),)))
    assert host_error(server.url()) == "damaged content encoding"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gzip_bomb_stops_at_the_cap(server: MisbehavingServer, layers: int) -> None:
    bomb = bytes(64 << 20)
    for _ in range(layers):
        bomb = gzip.compress(bomb, 1 if layers == 1 else 9)
    coding = ", ".join(["gzip"] * layers)
    server.answer(answer_with(body=bomb, headers=(encoded(coding),)))
    assert len(bomb) < LIMITS.max_bytes
    assert url_error(server.url()) == TOO_LARGE
