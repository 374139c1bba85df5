"""What clients of OpenAI's API put on the wire: whole HTTP requests, byte by byte.

Each function makes the request of one client, with the order, the headers and the pieces in which
that client writes them. Versions are those of November 2026.
"""

import base64
import http.client
import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

TRANSCRIPTIONS = "/v1/audio/transcriptions"
_BOUNDARY = "1304a03cabc74fec9f5f6a52ed0acbfe"
_KEY = "Authorization: Bearer sk-any"
_OPENAI_PYTHON = (
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Connection: keep-alive",
    "authorization: Bearer sk-any",
    "accept: application/json",
    "user-agent: OpenAI/Python 3.57.0",
    "x-stainless-lang: python",
    "x-stainless-retry-count: 0",
    "x-stainless-read-timeout: 600",
)


@dataclass(frozen=True)
class Request:
    """One HTTP/1.1 request. Its body goes out in these pieces, or after its length if not chunked.

    headers: lines as the client writes them, without those that tell how long the body is
    """

    line: str
    headers: Sequence[str]
    body: Sequence[bytes] = ()
    chunked: bool = False

    def pieces(self, host: str) -> Iterable[bytes]:
        """What is written to the connection."""
        length = sum(map(len, self.body))
        sized = (
            "Transfer-Encoding: chunked"
            if self.chunked
            else f"Content-Length: {length}"
        )
        lines = [f"{self.line} HTTP/1.1", f"Host: {host}", *self.headers]
        if self.body:
            lines.append(sized)
        yield "\r\n".join([*lines, "", ""]).encode()
        for piece in self.body:
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece
        if self.chunked:
            yield b"0\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """What the service answered. `headers` has names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> dict[str, object]:
        return dict(json.loads(self.body))


def send(url: str, request: Request) -> Answer:
    """Write a request to a connection of its own, and read the whole answer."""
    host = urlsplit(url)
    assert host.hostname and host.port
    with socket.create_connection((host.hostname, host.port), timeout=60) as connection:
        for piece in request.pieces(host.netloc):
            connection.sendall(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body)


def get(path: str) -> Request:
    """A plain question, as credential tests and probes ask."""
    return Request(f"GET {path}", [_KEY, "Accept: application/json"])


def open_webui(audio: bytes, language: str | None = None) -> Request:
    """Open WebUI 0.12.4, engine `openai`: aiohttp with a generator for the file.

    aiohttp does not know how much a generator gives, so the body has no length, and it writes each
    piece that it gets as a chunk of its own. A text is a part with a type of its own.
    """
    pieces: list[bytes] = []
    texts = {"model": "whisper-1"} | ({"language": language} if language else {})
    for name, value in texts.items():
        head = (
            "Content-Type: text/plain; charset=utf-8\r\n"
            f'Content-Disposition: form-data; name="{name}"\r\n\r\n'
        )
        pieces += [_dashes(), head.encode(), value.encode(), b"\r\n"]
    head = (
        "Content-Type: application/octet-stream\r\n"
        'Content-Disposition: form-data; name="file"; filename="3f1c.mp3"\r\n\r\n'
    )
    pieces += [_dashes(), head.encode()]
    pieces += [audio[at : at + 65536] for at in range(0, len(audio), 65536)]
    pieces += [b"\r\n", f"--{_BOUNDARY}--\r\n".encode()]
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [
            _KEY,
            "Accept: */*",
            "Accept-Encoding: gzip, deflate, br, zstd",
            "User-Agent: Python/3.12 aiohttp/3.14.5",
            f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",
        ],
        pieces,
        chunked=True,
    )


def open_webui_json(audio: bytes) -> Request:
    """Open WebUI with its setting `json`: the form that OpenRouter takes."""
    body = {
        "model": "whisper-1",
        "language": "en",
        "input_audio": {"data": base64.b64encode(audio).decode(), "format": "wav"},
    }
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [
            _KEY,
            "Accept: */*",
            "User-Agent: Python/3.12 aiohttp/3.14.5",
            "Content-Type: application/json",
        ],
        [json.dumps(body).encode()],
    )


def litellm(audio: bytes, granularities: str = "timestamp_granularities[]") -> Request:
    """LiteLLM 1.110.2 for `openai/whisper-1`: OpenAI's SDK, and `verbose_json` that nobody asked
    for, because LiteLLM wants the duration. `keywords` and `languages` come from its caller.

    granularities: the field's name, which older versions wrote without brackets; of two values,
        the last alone is sent
    """
    texts = [
        ("model", "whisper-1"),
        ("response_format", "verbose_json"),
        (granularities, "word"),
        ("keywords[]", "Ray"),
        ("languages[]", "en"),
    ]
    return _openai_python(texts, "speech.wav", "audio/x-wav", audio)


def n8n(audio: bytes) -> Request:
    """n8n's OpenAI node: Node's package `form-data`, name and type from the workflow's data."""
    boundary = "-" * 26 + "515890814546601021194782"
    texts = [("model", "whisper-1"), ("language", "en"), ("temperature", "0.2")]
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [
            "accept: application/json,text/html,application/xml,text/*;q=0.9, */*;q=0.8",
            f"content-type: multipart/form-data; boundary={boundary}",
            _KEY,
            "user-agent: n8n",
            "accept-encoding: gzip, compress, deflate, br",
        ],
        [_form(texts, 'filename="voice message.ogg"', "audio/ogg", audio, boundary)],
    )


def langchain(audio: bytes, part: int = 0) -> Request:
    """LangChain's OpenAIWhisperParser (community 0.4.2): parts of twenty minutes, by the SDK."""
    texts = [("model", "whisper-1"), ("language", "en"), ("temperature", "0")]
    return _openai_python(texts, f"talk.mp3_part_{part}.mp3", "audio/mpeg", audio)


def wyoming_openai(audio: bytes, stream: bool = False) -> Request:
    """wyoming_openai 0.4.1, the bridge to Home Assistant, to a server it took for speaches."""
    texts = [
        ("model", "whisper-1"),
        ("prompt", "Kitchen, living room"),
        ("response_format", "json"),
        *([("stream", "true")] if stream else []),
        ("temperature", "0"),
        ("vad_filter", "false"),
    ]
    return _openai_python(texts, "recording.wav", "audio/wav", audio)


def home_assistant(audio: bytes, language: str) -> Request:
    """Home Assistant's own openai_conversation: the SDK with a tuple (name, bytes)."""
    texts = [
        ("model", "gpt-4o-mini-transcribe"),
        ("language", language),
        ("prompt", "Kitchen"),
        ("response_format", "json"),
    ]
    return _openai_python(texts, "a.wav", "audio/x-wav", audio)


def subtitle_edit(audio: bytes, stream: bool = False) -> Request:
    """Subtitle Edit 5: .NET's MultipartFormDataContent.

    .NET quotes the boundary in the header, does not quote names that need no quotes, and gives the
    file's name in both forms of RFC 6266.
    """
    boundary = "1b2f7c1e-6b39-4c43-a0d5-64cb31dd8b5f"
    form = b""
    texts = [("model", "whisper-1"), ("language", "en")]
    if stream:
        texts += [("response_format", "json"), ("stream", "true")]
    else:
        texts += [("response_format", "verbose_json")]
    texts += [
        ('"timestamp_granularities[]"', "word"),
        ('"timestamp_granularities[]"', "segment"),
    ]
    for name, value in texts:
        form += (
            f"--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Disposition: form-data; name={name}\r\n\r\n{value}\r\n"
        ).encode()
    form += (
        f"--{boundary}\r\nContent-Type: audio/wav\r\nContent-Disposition: form-data; name=file;"
        " filename=audio.wav; filename*=utf-8''audio.wav\r\n\r\n"
    ).encode()
    form += audio + f"\r\n--{boundary}--\r\n".encode()
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [_KEY, f'Content-Type: multipart/form-data; boundary="{boundary}"'],
        [form],
    )


def whisper_subs(audio: bytes) -> Request:
    """WhisperSubs: the subtitle file first, and `verbose_json` only where that is not offered."""
    texts = [("model", "whisper-1"), ("response_format", "srt"), ("language", "en")]
    disposition = 'filename="audio.wav"'
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [_KEY, f"Content-Type: multipart/form-data; boundary={_BOUNDARY}"],
        [_form(texts, disposition, "audio/wav", audio)],
    )


def openai_java(audio: bytes) -> Request:
    """OpenAI's Java SDK with the path of a file, which it reads as a stream of unknown length.

    Each part has a type. OkHttp writes chunks of 8 KiB.
    """
    boundary = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    form = b""
    for name, value in [
        ("model", "whisper-1"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "segment"),
    ]:
        form += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n'
            f"Content-Type: text/plain; charset=utf-8\r\n\r\n{value}\r\n"
        ).encode()
    form += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="gravação.wav"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    form += audio + f"\r\n--{boundary}--\r\n".encode()
    return Request(
        f"POST {TRANSCRIPTIONS}",
        [
            "Accept: application/json",
            "User-Agent: OpenAIClientImpl/Java",
            _KEY,
            f"Content-Type: multipart/form-data; boundary={boundary}",
            "Accept-Encoding: gzip",
        ],
        [form[at : at + 8192] for at in range(0, len(form), 8192)],
        chunked=True,
    )


def curl(audio: bytes, path: str = TRANSCRIPTIONS) -> Request:
    """`curl -F model=whisper-1 -F file=@speech.wav`."""
    boundary = "-" * 24 + "k3vIRN1CcSgbQ9UqLpPqXH"
    disposition = 'filename="speech.wav"'
    return Request(
        f"POST {path}",
        [
            "User-Agent: curl/8.14.1",
            "Accept: */*",
            _KEY,
            f"Content-Type: multipart/form-data; boundary={boundary}",
        ],
        [_form([("model", "whisper-1")], disposition, "audio/wav", audio, boundary)],
    )


def _openai_python(
    texts: Sequence[tuple[str, str]], filename: str, media_type: str, audio: bytes
) -> Request:
    """OpenAI's Python SDK: the texts first, the file last."""
    form = _form(texts, f'filename="{filename}"', media_type, audio)
    content_type = f"Content-Type: multipart/form-data; boundary={_BOUNDARY}"
    return Request(f"POST {TRANSCRIPTIONS}", [*_OPENAI_PYTHON, content_type], [form])


def _form(
    texts: Sequence[tuple[str, str]],
    filename: str,
    media_type: str,
    audio: bytes,
    boundary: str = _BOUNDARY,
) -> bytes:
    form = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in texts
    )
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; {filename}\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    return form + head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()


def _dashes() -> bytes:
    return f"--{_BOUNDARY}\r\n".encode()
