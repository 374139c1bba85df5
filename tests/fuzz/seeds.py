"""Where the search begins: inputs that reach deep into each target."""

import base64
import json

from tests.fuzz.targets import TARGETS

_FILE = base64.b64encode(b"RIFF\x00\x00\x00\x00WAVE").decode()
_REQUEST = {"audio": "https://example.com/a.mp3", "language": "pt-BR", "beam_size": 5}
_WAV = (
    b"RIFF\x28\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00"
    b"\x00\x7d\x00\x00\x02\x00\x10\x00data\x04\x00\x00\x00\x01\x00\x02\x00"
)
_FORM = (
    b'--boundary\r\nContent-Disposition: form-data; name="model"\r\n\r\nbase\r\n'
    b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"Content-Type: audio/wav\r\nContent-Transfer-Encoding: binary\r\n\r\nRIFF\r\n--\r\n"
    b"--boundary--\r\n"
)

SEEDS: dict[str, list[bytes]] = {
    "json_body": [
        b"\x00" + json.dumps(_REQUEST).encode(),
        b"\x01{",
        b"\x02\xff\xfe",
        b"\x03" + b"[" * 5000,
    ],
    # A number of fields; for each a name, the place of a name in the list, and a value.
    "request": [
        b"\x02\n\x00\x04https://example.com/a.mp3\n\n\x05\x01\x05",
        b"\x01\n\x01\x04" + _FILE.encode(),
        b"\x01\n\x00\x04data:audio/wav;base64," + _FILE.encode(),
    ],
    "openai_request": [
        bytes([task, has_file]) + b"\x01\n\x15\x04https://example.com/a.mp3"
        for task in (0, 1)
        for has_file in (0, 1)
    ],
    "form": [b"\x01\x02\x03" + _FORM, b"\xff\xff\xff" + _FORM[:-4], b"\x00\x07\x00--"],
    "inline_audio": [
        b"\x00" + _FILE.encode(),
        b"\x00" + _FILE.encode().replace(b"A", b"A\n").rstrip(b"="),
        b"\x01audio/wav;base64," + _FILE.encode(),
        b"\x01;base64,%52%49%46%46",
        b"\x01,RIFF%00",
    ],
    "url": [
        b"../b?c#d\nhttps://user:pass@example.com:8443/a/b?c=d#e",
        b"//other.example/x\nhttp://[::1]/a b",
        b"http://127.0.0.1\\@evil.test/\nhttp://\xef\xbc\x91.example/%0a",
    ],
    "download_headers": [
        b"\x04\x0060\n\n\n\n",
        b"\x05\x00Wed, 21 Oct 2026 07:28:00 GMT\n\n\n\nWed, 21 Oct 2026 07:27:00 GMT",
        b'\x01\x03\nbytes 1-100/101\n"e"\n\n',
    ],
    "http": [
        b"\x00models\n\x01authorization: Bearer x\n",
        b"\x01transcribe\n\x03x-api-key: x\nhost: a\norigin: https://page.example\n{}",
        b"\x01v1/audio/transcriptions\n\x02content-type: multipart/form-data; boundary=b\n--b--",
        b"\x00v1/models\n\x01x-request-id: no id\n",
        b"\x00health\n\x00",
    ],
    "body": [
        b"\x00\x00\n" + _FORM.replace(b"boundary", b"b"),
        b"\x01\x00100\n" + _FORM.replace(b"boundary", b"b"),
        b"\x00\x01\n" + _WAV,
        b"\x01\x02\n" + _WAV,
        b"\x00\x03image/png\n\nx",
    ],
    "keys": [b"alice:" + b"a" * 64, b"# none\nbob:" + b"0F" * 32 + b",", b"none"],
    "decoder_reply": [
        b'{"start_s": 0.5, "warnings": ["The file is cut"]}',
        b'{"error": "InvalidAudioError", "text": "the file is \\ud800 damaged"}',
        b'{"failure": "KeyError@mono.py:57"}',
        b'{"start_s": NaN, "warnings": []}',
        b"[" * 5000,
    ],
}

assert SEEDS.keys() == TARGETS.keys()
