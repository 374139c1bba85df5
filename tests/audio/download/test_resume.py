"""A download that breaks off goes on where it was, or begins anew; it is never cut short."""

import gzip
import re
from dataclasses import replace

import pytest

from tests.support.downloads import (
    LIMITS,
    SOUND,
    TOO_LARGE,
    download,
    host_error,
    open_files,
    url_error,
)
from tests.support.misbehaving_server import (
    Answer,
    Connection,
    MisbehavingServer,
    answer_with,
    hosted,
    raw,
    redirect_to,
)

# The client takes whole chunks of this size; what it has of another one is lost with a connection.
CHUNK = 1 << 16
OTHER = SOUND[::-1]
MODIFIED = "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"


def ranges(server: MisbehavingServer) -> list[str | None]:
    """The Range of each request, checked to have an If-Range beside it."""
    found = []
    for head in server.requests:
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        assert ("Range" in lines) == ("If-Range" in lines)
        found.append(lines.get("Range"))
    return found


@pytest.mark.parametrize(
    "validators", [('ETag: "v1"',), (MODIFIED,), ('ETag: W/"v1"', MODIFIED)]
)
def test_a_cut_download_goes_on_where_it_was(
    server: MisbehavingServer, validators: tuple[str, ...]
) -> None:
    cut = hosted(SOUND, cut_after=3 * CHUNK, validators=validators)
    server.answer(cut, hosted(SOUND, validators=validators))
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={3 * CHUNK}-"]
    if_range = validators[-1].split(": ", 1)[1]
    assert f"\r\nIf-Range: {if_range}\r\n" in server.requests[1]


def test_a_download_that_gets_on_has_more_than_three_tries(
    server: MisbehavingServer, log: pytest.LogCaptureFixture
) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK))
    assert download(server.url()) == SOUND
    assert server.n_connections == -(-len(SOUND) // CHUNK) == 8
    waits = [message.split()[1] for message in log.messages]
    assert waits == ["wait=0.01"] * 7


def test_a_download_of_many_tries_keeps_no_connection_of_the_earlier_ones(
    server: MisbehavingServer,
) -> None:
    before = len(open_files())
    open_at_each_try: list[int] = []

    def cut(connection: Connection) -> None:
        # The server of the test has one end of this connection in the same process.
        open_at_each_try.append(len(open_files()) - before)
        hosted(SOUND * 2, cut_after=CHUNK)(connection)

    server.answer(cut)
    assert download(server.url()) == SOUND * 2
    assert len(open_at_each_try) == 16
    assert max(open_at_each_try) <= open_at_each_try[0] + 2


def test_a_download_that_does_not_get_on_has_three_tries_from_there(
    server: MisbehavingServer,
) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK), hosted(SOUND, cut_after=0))
    assert host_error(server.url()) == "connection cut"
    assert ranges(server) == [None, f"bytes={CHUNK}-", f"bytes={CHUNK}-"]


def test_a_host_that_gives_no_parts_is_asked_for_the_whole_file(
    server: MisbehavingServer,
) -> None:
    no_parts = answer_with(body=SOUND, headers=('ETag: "v1"',))
    server.answer(hosted(SOUND, cut_after=CHUNK), no_parts)
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-"]


@pytest.mark.parametrize(
    ("validators", "headers"),
    [
        ((), ()),
        (('ETag: W/"v1"',), ()),
        (("ETag: v1",), ()),
        (("Last-Modified: yesterday",), ()),
        ((MODIFIED,), ("Date: Wed, 21 Oct 2015 07:28:00 GMT",)),
        (('ETag: "v1"',), ("Accept-Ranges: none",)),
    ],
)
def test_without_a_sure_sign_of_the_version_a_download_begins_anew(
    server: MisbehavingServer, validators: tuple[str, ...], headers: tuple[str, ...]
) -> None:
    cut = hosted(OTHER, CHUNK, validators=validators, headers=headers)
    server.answer(cut, hosted(SOUND, validators=validators, headers=headers))
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, None]


def test_a_file_that_has_changed_begins_anew(server: MisbehavingServer) -> None:
    server.answer(
        hosted(OTHER, cut_after=3 * CHUNK), hosted(SOUND, validators=('ETag: "v2"',))
    )
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={3 * CHUNK}-"]


def test_a_file_that_changes_at_each_try_ends_in_an_error(
    server: MisbehavingServer,
) -> None:
    versions = [
        hosted(OTHER, cut_after=CHUNK, validators=(f'ETag: "v{i}"',)) for i in range(9)
    ]
    server.answer(*versions)
    assert host_error(server.url()) == "connection cut"
    assert server.n_connections == 3


def part(place: str, body: bytes, *headers: str, etag: str | None = '"v1"') -> Answer:
    of_version = () if etag is None else (f"ETag: {etag}",)
    return answer_with(
        "206 x", body=body, headers=(f"Content-Range: {place}", *of_version, *headers)
    )


N = len(SOUND)
REST = f"bytes {CHUNK}-{N - 1}/{N}"


@pytest.mark.parametrize(
    "answer",
    [
        hosted(OTHER, validators=('ETag: "v2"',), obeys_if_range=False),
        part(f"bytes {CHUNK}-{N}/{N + 1}", OTHER[CHUNK:] + b"x"),
        part(f"bytes {CHUNK + 1}-{N - 1}/{N}", OTHER[CHUNK + 1 :]),
        part(f"bytes 0-{N - 1}/{N}", OTHER),
        part(f"bytes {CHUNK}-{N - 2}/{N}", OTHER[CHUNK:]),
        part(f"items {CHUNK}-{N - 1}/{N}", OTHER[CHUNK:]),
        part("SECRET", OTHER[CHUNK:]),
        part(REST, OTHER[CHUNK:], "Content-Encoding: gzip"),
        answer_with("206 x", body=OTHER[CHUNK:], headers=('ETag: "v1"',)),
        raw(
            b"HTTP/1.1 206 x\r\nConnection: close\r\nContent-Range: "
            + f"{REST}\r\n\r\n".encode()
            + OTHER[CHUNK:]
            + b"x"
        ),
    ],
    ids=[
        *("a changed file", "another length", "later", "the whole as a part"),
        *("another length of the part", "another unit", "nonsense", "an encoding"),
        *("no place", "more than was asked for"),
    ],
)
def test_a_part_that_does_not_fit_what_came_before_is_not_taken(
    server: MisbehavingServer, answer: Answer
) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK), answer, hosted(SOUND))
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-", None]


@pytest.mark.parametrize("etag", [None, '"v1"'])
@pytest.mark.parametrize("total", [str(N), "*"])
def test_a_part_that_fits_is_taken(
    server: MisbehavingServer, etag: str | None, total: str
) -> None:
    place = f"bytes {CHUNK}-{N - 1}/{total}"
    server.answer(hosted(SOUND, cut_after=CHUNK), part(place, SOUND[CHUNK:], etag=etag))
    assert download(server.url()) == SOUND
    assert server.n_connections == 2


def test_a_host_that_gives_one_part_after_another_is_followed(
    server: MisbehavingServer,
) -> None:
    ends = [2 * CHUNK, 4 * CHUNK, 6 * CHUNK, N]
    starts = [0, *ends]
    server.answer(
        *(
            part(f"bytes {start}-{end - 1}/{N}", SOUND[start:end])
            for start, end in zip(starts, ends, strict=False)
        )
    )
    assert download(server.url()) == SOUND
    assert server.n_connections == 4


def test_a_part_that_is_all_a_host_ever_gives_is_never_taken_for_the_file(
    server: MisbehavingServer,
) -> None:
    server.answer(part(f"bytes 0-{CHUNK - 1}/{N}", SOUND[:CHUNK], etag=None))
    assert host_error(server.url()) == "connection cut"
    server.answer(answer_with("206 x", body=SOUND))
    reason = host_error(server.url())
    assert reason == "the host gives another part of the file than was asked for"


def test_a_chunked_body_goes_on_too(server: MisbehavingServer) -> None:
    head = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "v1"\r\n\r\n'
    server.answer(
        raw(head, b"%x\r\n" % CHUNK, SOUND[:CHUNK], b"\r\nffff\r\n"), hosted(SOUND)
    )
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-"]


def test_an_encoded_body_goes_on_and_is_decoded_when_it_is_whole(
    server: MisbehavingServer,
) -> None:
    # Barely compressed, so that there is something to cut.
    body = gzip.compress(SOUND, 0)
    coding = ("Content-Encoding: gzip",)
    server.answer(
        hosted(body, cut_after=CHUNK, headers=coding), hosted(body, headers=coding)
    )
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-"]


def test_a_host_that_falls_silent_in_the_middle_is_asked_for_the_rest(
    server: MisbehavingServer,
) -> None:
    def falls_silent(connection: Connection) -> None:
        hosted(SOUND, cut_after=CHUNK)(connection)
        connection.wait(5)

    server.answer(falls_silent, hosted(SOUND))
    assert download(server.url(), replace(LIMITS, read_timeout_s=1.0)) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-"]


def test_a_redirected_download_goes_on_from_its_first_url(
    server: MisbehavingServer,
) -> None:
    server.answer(
        redirect_to("/1"),
        hosted(SOUND, cut_after=CHUNK),
        redirect_to("/2"),
        hosted(SOUND),
    )
    assert download(server.url("/0")) == SOUND
    assert [head.split()[1] for head in server.requests] == ["/0", "/1", "/0", "/2"]
    assert ranges(server)[3] == f"bytes={CHUNK}-"


def test_a_failure_between_two_parts_costs_nothing(server: MisbehavingServer) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK), answer_with("503 x"), hosted(SOUND))
    assert download(server.url()) == SOUND
    assert ranges(server) == [None] + [f"bytes={CHUNK}-"] * 2


@pytest.mark.parametrize("status", ["400 x", "403 x", "412 x", "416 x"])
def test_a_host_that_refuses_to_give_a_part_is_asked_for_the_whole(
    server: MisbehavingServer, status: str
) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK), answer_with(status), hosted(SOUND))
    assert download(server.url()) == SOUND
    assert ranges(server) == [None, f"bytes={CHUNK}-", None]


def test_a_file_that_is_gone_at_the_second_try_is_reported(
    server: MisbehavingServer,
) -> None:
    server.answer(hosted(SOUND, cut_after=CHUNK), answer_with("404 x"))
    assert url_error(server.url()) == "HTTP 404 Not Found"


def test_a_download_over_several_tries_keeps_its_limit_of_size(
    server: MisbehavingServer,
) -> None:
    large = bytes(2 << 20)
    head = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "v1"\r\n\r\n'
    first = raw(head, b"%x\r\n" % CHUNK, large[:CHUNK])
    server.answer(first, hosted(large))
    assert url_error(server.url()) == TOO_LARGE
    assert server.n_connections == 2


def test_endless_progress_ends_at_the_total_deadline(
    server: MisbehavingServer,
) -> None:
    def next_part(connection: Connection) -> None:
        range_of = re.search(r"Range: bytes=(\d+)-", connection.request())
        start, total = int(range_of[1]) if range_of else 0, 1 << 27
        head = f"Content-Range: bytes {start}-{total - 1}/{total}"
        head += f'\r\nContent-Length: {total - start}\r\nETag: "v1"\r\n\r\n'
        connection.send(b"HTTP/1.1 206 x\r\n" + head.encode() + bytes(CHUNK))

    server.answer(next_part)
    limits = replace(LIMITS, max_bytes=1 << 27, total_timeout_s=0.5)
    assert host_error(server.url(), limits) == "timed out after 0.5 s in total"


@pytest.mark.parametrize(
    "answer",
    [
        answer_with(body=SOUND[:-1], length=N),
        hosted(SOUND, cut_after=0),
        answer_with(body=b"", length=1),
    ],
)
def test_a_body_that_stays_short_is_an_error(
    server: MisbehavingServer, answer: Answer
) -> None:
    server.answer(answer)
    assert host_error(server.url()) == "connection cut"
    assert server.n_connections == 3
