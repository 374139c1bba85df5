"""What is fuzzed: each target takes any bytes, and raises where the service would do wrong.

Errors of the contract are right answers. Any other exception is a finding, and so is an error text
that does not fit on a line of a log.
"""

import base64
import binascii
import io
import ipaddress
import math
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from starlette.datastructures import Headers
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from deployments import api
from deployments.api.json_body import RecordingFields, parse_json
from deployments.api.multipart import Form
from deployments.api.openai.answer_options import Task
from deployments.api.openai.request import parse as parse_openai
from deployments.api.origins import may_post
from deployments.audio.download.addresses import is_public
from deployments.audio.download.failures import (
    TemporaryError,
    check_status,
    http_date,
)
from deployments.audio.download.resume import PartialFile
from deployments.audio.download.url import DEFAULT_PORTS, HttpUrl
from deployments.audio.download.url_guard import UrlGuard
from deployments.audio.sandbox.messages import Reply
from deployments.config import AppArgs
from deployments.contract.errors import AudioUrlError, WhisperServeError
from deployments.contract.request import (
    TranscriptionRequest,
    UploadRequest,
    parse_request,
    parse_upload,
)
from deployments.keys import Keys, KeysError, new_key
from deployments.router.request_log import valid_request_id
from tests.fuzz.pieces import Pieces
from tests.support.asgi import ask
from tests.support.handles import Handle, Response, events, transcript
from tests.support.routers import router
from tests.support.security_headers import missing

# No error quotes more of a caller's text than that.
_LONGEST_ERROR = 1500
_RECORDING = RecordingFields(url="audio", base64="audio_base64")
_ARGS = AppArgs()
_MEDIA_TYPES = ("application/json", "", "text/plain", "application/problem+json")
_NATIVE_FIELDS = (*TranscriptionRequest.model_fields, "input", "stream")
_OPENAI_FIELDS = (
    *UploadRequest.model_fields,
    *("file", "url", "audio_url", "audio", "audio_base64", "prompt", "keywords"),
    *("languages", "response_format", "stream", "timestamp_granularities", "include"),
    *("timestamp_granularities[]", "max_line_width", "highlight_words"),
)
_BODY_TYPES = (
    "multipart/form-data; boundary=b",
    "audio/wav",
    "application/octet-stream",
    "",
)
_BOUNDARY = "boundary"
_MAX_FILE_BYTES = 1 << 16
_KEY, _LINE = new_key("alice")
_GUARD = UrlGuard()
_OPEN_PATHS = ("/health", "/ready", "/ping")


def json_body(data: bytes) -> None:
    """The text of a request's body."""
    pieces = Pieces(data)
    media_type = pieces.choice(_MEDIA_TYPES)
    with refused():
        parse_json(bytearray(pieces.rest()), media_type, _RECORDING)


def request(data: bytes) -> None:
    """The fields of the native API, the recording inside them, and what Whisper gets of them."""
    fields = Pieces(data).fields(_NATIVE_FIELDS)
    with refused():
        parsed = parse_request(dict(fields))
        parsed.options.whisper_options()
        for _ in parsed.inline_audio() or ():
            pass
    with refused():
        _ARGS.check_fits(parse_upload(fields).options, _ARGS.model("base"))


def openai_request(data: bytes) -> None:
    """The fields of OpenAI's API, as JSON or as a form's."""
    pieces = Pieces(data)
    task: Task = pieces.choice(("transcribe", "translate"))
    has_file = pieces.choice((False, True))
    with refused():
        parsed = parse_openai(pieces.fields(_OPENAI_FIELDS), task, _ARGS, has_file)
        for name in parsed.options.ignored:
            assert re.fullmatch(r"[\w.?-]{1,40}", name, re.ASCII), name


def form(data: bytes) -> None:
    """A form is the same in whatever pieces it arrives."""
    pieces = Pieces(data)
    sizes = [1 + pieces.number() for _ in range(3)]
    # After line breaks, python-multipart passes over what comes before the first boundary, but
    # within one piece only.
    body = pieces.rest().lstrip(b"\r\n")
    whole = _read_form([body])
    assert _read_form(_cut(body, sizes)) == whole


def inline_audio(data: bytes) -> None:
    """Base64 and data URIs give the bytes that Python's own decoder gives."""
    pieces = Pieces(data)
    field = pieces.choice(("audio_base64", "audio"))
    text = pieces.rest().decode("utf-8", "surrogateescape")
    if field == "audio":
        text = "data:" + text
    with refused():
        read = b"".join(parse_request({field: text}).inline_audio() or ())
        with suppress(binascii.Error, ValueError):
            if field == "audio_base64":
                assert read == base64.b64decode(text, validate=True)


def url(data: bytes) -> None:
    """The host of a URL, and of a redirect's, is the same to all who read it, and is public."""
    pieces = Pieces(data)
    location = pieces.line().decode("latin-1")
    text = pieces.rest().decode("utf-8", "replace")
    with refused():
        found = _GUARD.read(text)
        if text.isascii():
            with suppress(ValueError, LocationParseError):
                _assert_named(text, found)
        _assert_named(found.origin + found.target, found)
        _assert_public(found.host)
        assert re.fullmatch(r"/[\x21-\x7e]*", found.target), found.target
        redirected = _GUARD.follow(found, location)
        _assert_named(redirected.origin + redirected.target, redirected)
        _assert_public(redirected.host)
        assert re.fullmatch(r"/[\x21-\x7e]*", redirected.target), redirected.target


def download_headers(data: bytes) -> None:
    """What a host says about a file: Retry-After, Content-Range, dates, validators."""
    pieces = Pieces(data)
    response = requests.Response()
    response.status_code = pieces.choice((200, 206, 301, 404, 429, 503))
    length = pieces.choice((None, 0, 1, 100))
    response.raw = _Raw(length)
    names = ("Retry-After", "Content-Range", "ETag", "Last-Modified", "Date")
    for name in names:
        response.headers[name] = pieces.line().decode("latin-1")
        http_date(response.headers[name])
    # InvalidHeader: a date with a line break in it would go back to the host, and is not sent.
    with suppress(AudioUrlError, TemporaryError, requests.exceptions.InvalidHeader):
        try:
            check_status(response, headers_withheld=False)
        except TemporaryError as error:
            assert error.retry_after_s >= 0
            raise
        file = PartialFile(io.BytesIO())
        file.begin(response)
        file.file.write(b"x")
        headers = file.headers()
        requests.Request("GET", "http://host/", headers=headers).prepare()
        file.begin(response)
        file.end()


def http(data: bytes) -> None:
    """A request over HTTP to a service with keys: none passes without one, and none breaks it."""
    pieces = Pieces(data)
    method = pieces.choice(("GET", "POST", "HEAD", "OPTIONS", "PUT"))
    path = "/" + pieces.line().decode("latin-1")
    headers = []
    for _ in range(pieces.number() % 8):
        name, _, value = pieces.line().decode("latin-1").partition(":")
        headers.append((name.strip(), value.strip()))
    may_post(
        Headers(
            raw=[
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in headers
            ]
        ),
        ("https://page.example",),
        any_host=False,
    )
    answer = ask(_APP, method, path, headers, body=pieces.rest())
    assert answer.status < 500, answer.status
    assert missing(answer.headers) == []
    # Serve's proxy repeats an id that came with the request.
    for request_id in answer.headers.getlist("x-request-id"):
        assert request_id == valid_request_id(request_id)
    if path not in _OPEN_PATHS and method != "OPTIONS":
        assert answer.status in (401, 403), answer.status


def body(data: bytes) -> None:
    """A body that is no JSON, of a caller with a key: to the decoder's answer and back."""
    pieces = Pieces(data)
    path = pieces.choice(("/transcribe", "/v1/audio/transcriptions"))
    media_type = pieces.choice(_BODY_TYPES) or pieces.line().decode("latin-1")
    headers = [("x-api-key", _KEY), ("content-type", media_type)]
    if length := pieces.line():
        headers.append(("content-length", length.decode("latin-1")))
    answer = ask(_APP, "POST", path, headers, body=pieces.rest())
    # 502: a form named a URL.
    assert answer.status < 500 or answer.status == 502, answer.status
    assert missing(answer.headers) == []


def keys(data: bytes) -> None:
    """The list of keys that an operator writes."""
    with suppress(KeysError):
        listed = data.decode("utf-8", "replace")
        assert Keys.from_environment({"API_KEYS": listed}).stated == bool(
            listed.strip()
        )


def decoder_reply(data: bytes) -> None:
    """What a decoder may say that was taken over fits into an answer and on a line of the log."""
    try:
        reply = Reply.from_bytes(data)
    except ValueError:
        return
    "".join(reply.warnings).encode()
    assert math.isfinite(reply.start_s)
    assert re.fullmatch(r"[^\s=]*", reply.failure or "")
    if reply.error is not None:
        str(reply.error).encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        json_body,
        request,
        openai_request,
        form,
        inline_audio,
        url,
        download_headers,
        http,
        body,
        keys,
        decoder_reply,
    )
}


class _Raw:
    """The part of urllib3's response that tells how many bytes are to come."""

    def __init__(self, length_remaining: int | None) -> None:
        self.length_remaining = length_remaining


_APP = api.build(
    router(Handle(stream=[events(transcript())], slots=[Response(None)]), running=0),
    Keys.from_environment({"API_KEYS": _LINE}),
)


@contextmanager
def refused() -> Iterator[None]:
    """The request may be refused, in a line of a bounded length."""
    try:
        yield
    except WhisperServeError as error:
        text = str(error)
        assert error.status < 500, text
        assert 0 < len(text) <= _LONGEST_ERROR, text
        text.encode()


def _read_form(parts: list[bytes]) -> Any:
    """The fields and the file, or the error's text."""
    try:
        form = Form(
            f"multipart/form-data; boundary={_BOUNDARY}",
            io.BytesIO,
            _MAX_FILE_BYTES,
        )
        for part in parts:
            form.feed(part)
        form.finish()
    except WhisperServeError as error:
        assert error.status < 500
        return str(error)
    file = form.file
    if file is None:
        return form.fields, None
    with file:
        return form.fields, file.read()


def _cut(body: bytes, sizes: list[int]) -> list[bytes]:
    parts, turn = [], 0
    while body:
        size = sizes[turn % len(sizes)]
        parts.append(body[:size])
        body, turn = body[size:], turn + 1
    return parts


def _assert_named(text: str, found: HttpUrl) -> None:
    """Python's parser and urllib3's find the host and the port that were judged."""
    for parser in (urlsplit, parse_url):
        parts: Any = parser(text)
        host = (parts.hostname if parser is urlsplit else parts.host) or ""
        assert host.strip("[]").lower() == found.host, (text, host, found.host)
        assert (parts.port or DEFAULT_PORTS[found.scheme]) == found.port, text


def _assert_public(host: str) -> None:
    """What the C library reads as an IPv4 address is one as it is usually written, and public."""
    with suppress(OSError):
        address = ipaddress.IPv4Address(socket.inet_aton(host))
        assert host == str(address) and is_public(address), host
    with suppress(ValueError):
        literal = ipaddress.IPv6Address(host)
        assert is_public(literal), host
        assert not literal.is_loopback and not literal.is_link_local, host
