"""Request bodies: forms and files that go to disk, their limits, and what callers do wrong."""

import asyncio
import contextlib
import http.client
import io
import json
import logging
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from deployments import api
from deployments.api import json_body
from tests.support.asgi import Answer, post
from tests.support.handles import Handle, events, transcript
from tests.support.http_server import served_app, served_file
from tests.support.routers import AUDIO, RECORDING, router

BOUNDARY = "a-boundary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
FLAC = (AUDIO / "jfk.flac").read_bytes()
MIB = 1 << 20


def part(name: str, content: bytes | str, more: str = "") -> bytes:
    content = content.encode() if isinstance(content, str) else content
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    )
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def application(handle: Handle | None = None, **args: Any) -> tuple[FastAPI, Handle]:
    handle = handle or Handle(stream=[events(transcript())])
    return api.build(router(handle, running=0, **args)), handle


def sent(
    body: bytes | list[bytes],
    headers: dict[str, str] = FORM,
    app: FastAPI | None = None,
    **more: Any,
) -> Answer:
    pieces = [body] if isinstance(body, bytes) else body
    app = app or application()[0]
    return asyncio.run(post(app, "/transcribe", headers, pieces, **more))


SMALL = part("file", (AUDIO / "jfk-phone.wav").read_bytes())
FILE = part("file", FLAC, '; filename="jfk.flac"')


@pytest.mark.parametrize("piece_bytes", [1 << 20, 65536, 1000, 61])
@pytest.mark.parametrize("file_first", [True, False])
def test_a_form_is_read_however_it_is_cut_and_ordered(
    file_first: bool, piece_bytes: int
) -> None:
    fields = [part("word_timestamps", "true"), part("beam_size", "3")]
    body = form(FILE, *fields) if file_first else form(*fields, FILE)
    pieces = [body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes)]
    app, handle = application()
    answer = sent(pieces, app=app)
    assert (answer.status, answer.json()["duration"]) == (200, 11.0)
    [(_, options, *_)] = [given for given in handle.arguments if given]
    assert (options.word_timestamps, options.beam_size) == (True, 3)


def test_each_byte_of_a_form_may_arrive_alone() -> None:
    body = form(part("beam_size", "99"), part("file", "x"))
    answer = sent([bytes([byte]) for byte in body])
    assert answer.error == "Invalid beam_size: must be an integer between 1 and 10"


@pytest.mark.parametrize(
    "disposition",
    [
        "",
        '; filename=""',
        "; filename=jfk.flac",
        '; filename="gravação 録音 запись.flac"',
        "; filename*=UTF-8''%E9%8C%B2%E9%9F%B3.flac",
        '; filename="a.flac"\r\nContent-Type: text/plain; charset=utf-8',
        '; filename="a.exe"\r\nContent-Type: nonsense\r\nContent-Transfer-Encoding: binary',
    ],
)
def test_the_part_file_is_the_file_whatever_it_is_called(disposition: str) -> None:
    assert sent(form(part("file", FLAC, disposition))).status == 200


@pytest.mark.parametrize(
    "filename", ['; filename="a.flac"', "; filename*=UTF-8''%E9%8C%B2.flac"]
)
def test_the_part_audio_is_the_file_where_it_has_a_file_name(filename: str) -> None:
    assert sent(form(part("audio", FLAC, filename))).json()["duration"] == 11.0


def test_a_form_without_a_file_gives_its_url() -> None:
    with served_file(AUDIO / "jfk.flac") as url:
        answer = sent(form(part("audio", url), part("beam_size", "3")))
    assert (answer.status, answer.json()["duration"]) == (200, 11.0)


@pytest.mark.parametrize("name", ["jfk.mp4", "sonnet.webm", "veneno.m4a"])
def test_a_video_is_read_by_its_content(name: str) -> None:
    answer = sent(form(part("file", (AUDIO / name).read_bytes())))
    assert answer.status == 200 and answer.json()["duration"] > 5


@pytest.mark.parametrize(
    "content_type", ["audio/flac", "video/mp4", "AUDIO/x-unknown; codecs=x"]
)
def test_a_file_may_be_the_whole_body(content_type: str) -> None:
    answer = sent(FLAC, {"content-type": content_type})
    assert (answer.status, answer.json()["duration"]) == (200, 11.0)


def test_bytes_of_no_known_type_are_json_or_a_file() -> None:
    unknown = {"content-type": "application/octet-stream"}
    assert sent([FLAC[:10], FLAC[10:]], unknown).json()["duration"] == 11.0
    missing = "Missing required parameter: 'audio' (URL to audio file)"
    assert sent(b"\xef\xbb\xbf {}", unknown).error == missing
    assert sent(b"", unknown).error.startswith("The request body is empty: send a JSON")


def test_fields_that_take_lists_may_be_repeated() -> None:
    app, handle = application()
    parts = [part("clip_timestamps", "0"), part("clip_timestamps", "5"), FILE]
    assert sent(form(*parts), app=app).status == 200
    [(_, options, *_)] = [given for given in handle.arguments if given]
    assert options.clip_timestamps == [0.0, 5.0]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            form(FILE, FILE),
            "The form has two files: send one in each request",
        ),
        (
            form(FILE, part("audio", FLAC, '; filename="b"')),
            "The form has two files: send one in each request",
        ),
        (
            form(FILE, part("audio", "https://example.com/a")),
            "Invalid audio: the file came with the request; give one of them",
        ),
        (
            form(FILE, part("model", "base"), part("model", "tiny")),
            "Invalid model: the form has this field 2 times; send it once",
        ),
        (
            form(part("upload", FLAC)),
            "The form's field 'upload' is no text in UTF-8: a file goes into the field 'file'",
        ),
        (form(part("upload", "text"), FILE), "Unknown parameter: 'upload'. Valid"),
        (form(part("file", "")), "Invalid file: the form's file is empty"),
        (form(), "Missing required parameter: 'audio' (URL to audio file)"),
        (FILE, "The form breaks off: the boundary after its last part is missing"),
        (form(FILE)[:5000], "The form breaks off: the boundary after its last"),
        (b"", "The form breaks off: the boundary after its last part is missing"),
        (b"RIFF" + FLAC, "The form is not valid multipart/form-data: a boundary or"),
        (b"{}", "The form is not valid multipart/form-data: a boundary or"),
        (
            form(b"--a-boundary\r\nContent-Type: x\r\n\r\n\r\n"),
            "A part of the form has no name (Content-Disposition: form-data; name=...)",
        ),
        (
            form(part("file", "UklGRg==", "\r\nContent-Transfer-Encoding: base64")),
            "A part of the form has a Content-Transfer-Encoding: send its bytes as they are",
        ),
        (form(*[part("x", "")] * 1001), "The form has more than 1000 fields"),
    ],
)
def test_a_form_that_is_wrong_is_told_what_to_change(body: bytes, error: str) -> None:
    answer = sent(body)
    assert answer.status == 422
    assert answer.json()["type"] == "invalid_request"
    assert answer.error.startswith(error)


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        (
            "multipart/form-data",
            "The form's Content-Type names no boundary: do not set",
        ),
        ("multipart/form-data; boundary=", "The form's Content-Type names no boundary"),
        (
            f"multipart/form-data; boundary={'x' * 300}",
            "The form's boundary is too long",
        ),
    ],
)
def test_a_form_without_a_usable_boundary_is_refused(
    content_type: str, error: str
) -> None:
    answer = sent(form(FILE), {"content-type": content_type})
    assert answer.status == 422 and answer.error.startswith(error)


TOO_LARGE = "The file is larger than the limit of 2 MiB (max_download_bytes)"
HEAD = part("file", b"").removesuffix(b"\r\n")
PIECE = b"x" * (MIB // 16)


@pytest.mark.parametrize(
    "headers", [FORM, {"content-type": "audio/wav"}, {"content-type": "video/x"}]
)
def test_a_body_that_announces_too_much_is_refused_unread(
    headers: dict[str, str],
) -> None:
    app, _ = application(max_download_bytes=2 * MIB)
    length = {"content-length": str(20 * MIB)}
    answer = sent([PIECE] * 320, headers | length, app)
    assert (answer.status, answer.error) == (413, TOO_LARGE)
    assert answer.json()["type"] == "request_too_large"
    assert answer.reads == 0


def test_json_that_announces_too_much_is_refused_unread() -> None:
    length = {"content-length": str(json_body.MAX_BODY_BYTES + 1)}
    answer = sent([b"{"], {"content-type": "application/json"} | length)
    assert answer.status == 413 and answer.reads == 0


@pytest.mark.parametrize(
    ("headers", "start"), [(FORM, HEAD), ({"content-type": "audio/wav"}, b"")]
)
def test_a_body_without_a_length_is_read_to_its_limit_and_no_further(
    headers: dict[str, str], start: bytes
) -> None:
    app, _ = application(max_download_bytes=2 * MIB)
    answer = sent([start] + [PIECE] * 1000, headers, app)
    assert (answer.status, answer.error) == (413, TOO_LARGE)
    # The pieces of a megabyte that are written at once, and those that fill the limit.
    assert answer.reads <= 2 * 16 + 16 + 1


def test_a_file_of_exactly_the_limit_is_taken() -> None:
    for limit, status in ((len(FLAC), 200), (len(FLAC) - 1, 413)):
        app, _ = application(max_download_bytes=limit)
        assert sent(form(FILE), app=app).status == status
        assert sent(FLAC, {"content-type": "audio/x"}, app).status == status


def test_the_texts_of_a_form_are_bounded() -> None:
    answer = sent([part("initial_prompt", "x")[:-3]] + [PIECE] * 200)
    assert answer.status == 413
    assert answer.error.startswith("The form's fields are larger than 4 MiB: a file")
    assert answer.reads < 100


def test_a_file_is_never_whole_in_memory() -> None:
    pieces = [HEAD, *[PIECE] * 1024]
    tracemalloc.start()
    try:
        answer = sent(pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.error.startswith("The form breaks off")
    assert peak < 8 * MIB


def test_a_file_has_no_name_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[list[Path]] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(64):
            yield PIECE
        found.append(list(tmp_path.iterdir()))

    app, _ = application()
    asyncio.run(post(app, "/transcribe", FORM, pieces()))
    assert found == [[]]


def test_a_disk_without_room_is_said_to_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(buffering: int) -> io.FileIO:
        # What is written to this device finds no room.
        return io.FileIO("/dev/full", "r+")

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    # Of the file, a large one is written while it arrives, and a small one at its end.
    for body in ([HEAD, *[PIECE] * 64], [form(part("file", "RIFF"))]):
        answer = sent(body)
        assert (answer.status, answer.json()["type"]) == (503, "overloaded")
        assert answer.error == (
            "The service's disk has no room for the file: try again later"
        )
        assert answer.headers["retry-after"] == "10"


BUSY = (
    "Other requests hold as many bytes as are allowed (4 MiB, max_spool_bytes):"
    " try again later"
)


class Held:
    """A body that stays incomplete until a test lets it end."""

    def __init__(self, *start: bytes, end: bytes = b"") -> None:
        self.start, self.end = start, end
        self.arrived, self.may_end = asyncio.Event(), asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self.start:
            yield piece
        self.arrived.set()
        await self.may_end.wait()
        yield self.end


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_beyond_the_budget_are_refused_until_another_has_ended(
    announced: bool,
) -> None:
    app, _ = application(max_spool_bytes=4 * MIB)
    size = 3 * MIB
    length = {"content-length": str(size)} if announced else {}
    held = Held(HEAD, *[PIECE] * (size // len(PIECE)))
    small = {"content-type": "application/json"}

    async def check() -> None:
        first = asyncio.ensure_future(
            post(app, "/transcribe", FORM | length, held.pieces())
        )
        await held.arrived.wait()
        second = await post(app, "/transcribe", FORM, [HEAD, *[PIECE] * 64])
        assert (second.status, second.error) == (503, BUSY)
        assert (second.json()["type"], second.headers["retry-after"]) == (
            "overloaded",
            "10",
        )
        # Before a byte is read, where the length is known; JSON counts as well.
        for headers in (FORM, small):
            more = {"content-length": str(2 * MIB)}
            third = await post(app, "/transcribe", headers | more, [b"{}"])
            assert (third.status, third.reads) == (503, 0)
        # What fits is taken.
        assert (await post(app, "/transcribe", FORM, [form(SMALL)])).status == 200
        held.may_end.set()
        assert (await first).status == 422
        fourth = await post(app, "/transcribe", FORM | length, [form(FILE)])
        assert fourth.status == 200

    asyncio.run(check())


def test_bodies_that_do_not_come_keep_no_room_from_others() -> None:
    app, _ = application(max_spool_bytes=4 * MIB)
    length = {"content-length": str(3 * MIB)}

    async def check() -> None:
        idle = [Held(HEAD) for _ in range(8)]
        posts = [
            asyncio.ensure_future(
                post(app, "/transcribe", FORM | length, held.pieces())
            )
            for held in idle
        ]
        for held in idle:
            await held.arrived.wait()
        assert (await post(app, "/transcribe", FORM, [form(FILE)])).status == 200
        for held in idle:
            held.may_end.set()
        assert {answer.status for answer in await asyncio.gather(*posts)} == {422}

    asyncio.run(check())


def test_a_file_counts_until_it_has_been_read_and_json_until_its_answer() -> None:
    async def check(body: bytes, headers: dict[str, str], free: bool) -> None:
        # The replica accepts the request and then does not answer.
        held = Handle(stream=[events(transcript(), delay_s=1000.0)])
        app, _ = application(held, max_spool_bytes=len(body) * 4 // 3)
        length = {"content-length": str(len(body))}
        first = asyncio.ensure_future(
            post(app, "/transcribe", headers | length, [body])
        )
        while "stream" not in held.calls:
            await asyncio.sleep(0.001)
        second = await post(app, "/transcribe", FORM | length, [form()])
        assert second.status == (422 if free else 503)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        third = await post(app, "/transcribe", FORM | length, [form()])
        assert third.status == 422

    asyncio.run(check(form(FILE), FORM, True))
    content_type = {"content-type": "application/json"}
    request = json.dumps(RECORDING).encode() + b" " * MIB
    asyncio.run(check(request, content_type, False))


def test_a_file_that_the_budget_can_never_hold_is_too_large() -> None:
    app, _ = application(max_spool_bytes=MIB)
    answer = sent([HEAD], FORM | {"content-length": str(20 * MIB)}, app)
    assert answer.status == 413


def test_a_caller_who_leaves_in_the_middle_frees_what_the_upload_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, _ = application(max_spool_bytes=4 * MIB)
    length = FORM | {"content-length": str(3 * MIB)}
    with caplog.at_level(logging.INFO, "deployments"):
        sent([HEAD, *[PIECE] * 40], length, app, leaves=True)
    [line] = [r.getMessage() for r in caplog.records if "request_id=" in r.getMessage()]
    assert "status=499 reason=request_cancelled" in line
    assert sent(form(FILE), length, app).status == 200


def test_an_upload_that_stands_still_is_given_up() -> None:
    app, _ = application(read_timeout_s=0.05, max_spool_bytes=4 * MIB)
    length = FORM | {"content-length": str(3 * MIB)}

    async def check() -> Answer:
        return await post(app, "/transcribe", length, Held(HEAD).pieces())

    answer = asyncio.run(check())
    assert (answer.status, answer.json()["type"]) == (504, "request_timeout")
    assert answer.error == (
        "No more of the request body came within 0.05 s (read_timeout_s)"
    )
    assert sent(form(FILE), length, app).status == 200


def test_an_upload_that_does_not_end_is_given_up() -> None:
    app, _ = application(request_timeout_s=0.05)
    answer = asyncio.run(post(app, "/transcribe", FORM, Held(HEAD).pieces()))
    assert (answer.status, answer.json()["type"]) == (504, "request_timeout")
    assert answer.error == (
        "The request body did not come within 0.05 s (request_timeout_s)"
    )


def posted(
    app: FastAPI, body: Iterator[bytes], content_type: str
) -> tuple[int, dict[str, Any]]:
    """The answer to a chunked body; a caller who is not listened to stops sending and reads it."""
    with served_app(app) as url:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.putrequest("POST", "/transcribe")
        connection.putheader("Content-Type", content_type)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for piece in body:
            connection.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        connection.send(b"0\r\n\r\n")
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_over_a_socket_a_chunked_form_is_read() -> None:
    body = form(FILE, part("model", "base"))
    pieces = (body[i : i + 5000] for i in range(0, len(body), 5000))
    status, answer = posted(application()[0], pieces, FORM["content-type"])
    assert (status, answer["duration"]) == (200, 11.0)


def test_over_a_socket_a_caller_who_sends_too_much_gets_the_answer() -> None:
    pieces = iter([HEAD] + [PIECE] * 320)
    app, _ = application(max_download_bytes=2 * MIB)
    status, answer = posted(app, pieces, FORM["content-type"])
    assert (status, answer["error"]) == (413, TOO_LARGE)


def test_the_description_shows_a_form_with_a_file() -> None:
    app, _ = application()
    content = app.openapi()["paths"]["/transcribe"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    form_fields = content["multipart/form-data"]["schema"]["properties"]
    json_fields = content["application/json"]["schema"]["properties"]
    assert set(form_fields) == {"file", *json_fields}
    # What OpenAPI 3.1 has in place of `format: binary`.
    assert form_fields["file"]["contentMediaType"] == "application/octet-stream"
