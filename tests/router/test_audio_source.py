"""From a request to its waveform, over a real download and the real decoder."""

import asyncio
import base64
import io
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.audio.spool import Spool
from deployments.config import AppArgs
from deployments.contract.errors import (
    AudioHostError,
    AudioUrlError,
    InvalidAudioError,
    OverloadedError,
    WhisperServeError,
)
from deployments.contract.request import parse_request
from deployments.router.audio_source import source_of
from deployments.router.decoding import Decoder, Waveform
from deployments.router.fetching import FetchedFile, Fetcher
from tests.support.misbehaving_server import (
    MisbehavingServer,
    answer_with,
    redirect_to,
)
from tests.support.sandbox import SANDBOX

FLAC = (Path(__file__).parents[1] / "audio" / "jfk.flac").read_bytes()
PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"
ERROR = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


class FullDisk(io.FileIO):
    """A file that takes nothing, on a device which knows no truncation."""

    def __init__(self, buffering: int = 0) -> None:
        super().__init__("/dev/full", "r+")

    def truncate(self, size: int | None = None) -> int:
        return size or 0


def load(request: dict[str, Any]) -> Waveform:
    args = AppArgs(allow_private_networks=True)
    spool = Spool(args.max_spool_bytes)
    source = source_of(parse_request(request), None, spool)

    async def loaded() -> Waveform:
        async with Fetcher(args, spool).fetched(source) as fetched:
            return await Decoder(args, SANDBOX).decode(fetched)

    return asyncio.run(loaded())


def failure(request: dict[str, Any]) -> WhisperServeError:
    with pytest.raises(WhisperServeError) as caught:
        load(request)
    return caught.value


def test_a_disk_without_room_is_no_fault_of_the_request(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", FullDisk)
    server.answer(answer_with(body=FLAC))
    for request in (
        {"audio": server.url()},
        {"audio_base64": base64.b64encode(FLAC).decode()},
    ):
        error = failure(request)
        assert isinstance(error, OverloadedError)
        assert str(error) == (
            "The service's disk has no room for the file: try again later"
        )


@pytest.mark.parametrize(
    ("body", "content_type", "kind"),
    [
        (PAGE, "text/html", "a web page (HTML)"),
        (PAGE, "audio/mpeg", "a web page (HTML)"),
        (ERROR, "application/xml", "an XML document"),
        (b'{"error": "expired"}', "application/json", "a JSON document"),
        (b"Link expired", "text/plain", "text"),
    ],
)
def test_a_url_that_gives_a_text_is_at_fault_and_the_text_is_named(
    server: MisbehavingServer, body: bytes, content_type: str, kind: str
) -> None:
    server.answer(answer_with(body=body, headers=(f"Content-Type: {content_type}",)))
    error = failure({"audio": server.url()})
    assert type(error) is AudioUrlError
    assert (
        str(error) == f"Audio download failed: the URL gives {kind}, not an audio file"
    )


def test_a_text_inside_the_request_is_told_as_any_file_that_is_no_audio() -> None:
    error = failure({"audio_base64": base64.b64encode(PAGE).decode()})
    assert type(error) is InvalidAudioError


def test_a_file_of_another_kind_is_told_as_before(server: MisbehavingServer) -> None:
    server.answer(answer_with(body=b"%PDF-1.7\n\0"))
    error = failure({"audio": server.url()})
    assert type(error) is InvalidAudioError
    assert "not audio or video of a known kind" in str(error)


@pytest.mark.parametrize("content_type", ["text/html", "application/xml", "x"])
def test_audio_that_decodes_is_taken_under_any_content_type(
    server: MisbehavingServer, content_type: str
) -> None:
    headers = (f"Content-Type: {content_type}", "Content-Encoding: gzip")
    server.answer(answer_with(body=FLAC, headers=headers))
    assert load({"audio": server.url()}).duration_s == pytest.approx(11, abs=0.1)


def test_the_headers_of_a_request_go_with_its_download_and_nowhere_else(
    server: MisbehavingServer, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": "Bearer SECRET", "X-Key": "SECRET"}
    with MisbehavingServer() as other, caplog.at_level(logging.DEBUG):
        server.answer(answer_with("503 x"), redirect_to(other.url()))
        other.answer(answer_with(body=FLAC))
        request = {"audio": server.url(), "audio_headers": headers}
        assert load(request).duration_s > 10
        server.answer(answer_with("500 x"))
        error = failure(request)
    assert type(error) is AudioHostError
    for head in server.requests:
        assert "\r\nAuthorization: Bearer SECRET\r\nX-Key: SECRET\r\n" in head
    assert "SECRET" not in other.requests[0]
    source = source_of(parse_request(request), None, Spool(1))
    assert "SECRET" not in caplog.text + repr(error) + str(error) + repr(source)


class SlowFile(io.BytesIO):
    """A file whose first read waits until a test lets it go on."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reading, self.may_go_on = threading.Event(), threading.Event()
        self.closed_while_read = False

    def read(self, size: int | None = -1) -> bytes:
        self.reading.set()
        self.may_go_on.wait(60)
        self.closed_while_read |= self.closed
        return super().read(size)


async def test_a_cancelled_call_returns_when_its_file_is_read_no_more() -> None:
    file = SlowFile(FLAC)
    decoder = Decoder(AppArgs(), SANDBOX)
    decoding = asyncio.ensure_future(
        decoder.decode(FetchedFile(file, 0.0, remote=False))
    )
    await asyncio.to_thread(file.reading.wait, 60)
    decoding.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not decoding.done()
    file.may_go_on.set()
    await asyncio.gather(decoding, return_exceptions=True)
    assert decoding.cancelled()
