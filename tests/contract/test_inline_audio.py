"""A file inside a request, as browsers and other clients write it."""

import base64
import os
import tracemalloc
from collections.abc import Callable
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.contract import inline_audio
from deployments.contract.errors import InvalidRequestError
from deployments.contract.inline_audio import InlineAudioError, decoded
from deployments.contract.request import parse_request
from tests.support.contract import URL

# Every byte, so that base64 has every character of its alphabet.
FILE = bytes(range(256)) * 5


def plain(data: bytes) -> str:
    return base64.b64encode(data).decode()


FORMS: dict[str, Callable[[bytes], str]] = {
    "plain": plain,
    "lines": lambda data: base64.encodebytes(data).decode(),
    "windows lines": lambda data: (
        base64.encodebytes(data).decode().replace("\n", "\r\n")
    ),
    "blanks around": lambda data: f"\n  {plain(data)}\t\n",
    "blanks for lines": lambda data: (
        base64.encodebytes(data).decode().replace("\n", " ")
    ),
    "no padding": lambda data: plain(data).rstrip("="),
    "alphabet for URLs": lambda data: base64.urlsafe_b64encode(data).decode(),
    "JSON web": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "data URI": lambda data: "data:audio/wav;base64," + plain(data),
    "MediaRecorder": lambda data: "data:audio/webm;codecs=opus;base64," + plain(data),
    "charset": lambda data: "data:text/plain;charset=utf-8;base64," + plain(data),
    "capitals": lambda data: " DATA:Audio/WAV;BASE64," + plain(data),
    "no media type": lambda data: "data:;base64," + plain(data),
    "escaped base64": lambda data: "data:audio/wav;base64," + quote(plain(data), ""),
    "escaped bytes": lambda data: "data:audio/wav," + quote(data),
    "all bytes escaped": lambda data: (
        "data:," + "".join(f"%{byte:02x}" for byte in data)
    ),
}


def file_in(text: str) -> bytes:
    return b"".join(decoded(text))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_in_every_form_that_clients_write(form: str) -> None:
    # Each length leaves another rest of base64.
    for data in (FILE, FILE[:-1], FILE[:-2], b"R"):
        assert file_in(FORMS[form](data)) == data


@pytest.mark.parametrize("form", FORMS)
def test_pieces_may_end_anywhere(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 4, 5, 7, 64):
        monkeypatch.setattr(inline_audio, "_PIECE", size)
        assert file_in(FORMS[form](FILE)) == FILE


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["%00", "%ff", "%3D", "%0a", "=", "==", "\n", " ", "_", "=41"])
        | st.characters(max_codepoint=127, exclude_characters="%")
    )
)
def test_escapes_are_read_as_the_standard_library_reads_them(parts: list[str]) -> None:
    text = "".join(parts)
    if text:
        assert file_in("data:," + text) == unquote_to_bytes(text)


@pytest.mark.parametrize("field", ["audio", "audio_base64"])
def test_a_data_uri_may_stand_in_either_field(field: str) -> None:
    pieces = parse_request({field: FORMS["data URI"](FILE)}).inline_audio()
    assert pieces is not None
    assert b"".join(pieces) == FILE


def test_a_url_holds_no_file() -> None:
    assert parse_request({"audio": URL}).inline_audio() is None
    assert parse_request({"audio": "database.example/x.mp3"}).inline_audio() is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "holds no data"),
        (" \n", "holds no data"),
        ("====", "holds no data"),
        ("data:audio/wav;base64,", "holds no data"),
        ("data:,", "holds no data"),
        (
            "data:audio/wav;base64",
            "is a data URI without a comma, and so without data",
        ),
        ("AAAAA", "is cut off: its base64 ends within a byte"),
        ("AAAA!AAA", "is no base64: it holds '!' at character 5"),
        ("ä" * 8, "is no base64: it holds 'ä' at character 1"),
        ("AAAA\u200bAAA", "is no base64: it holds U+200B at character 5"),
        ("\ud800", "is no base64: it holds U+D800 at character 1"),
        ("AA==AAAA", "is no base64: data follow the padding ('=') at character 3"),
        (
            "data:a/b;base64,AAAA*",
            "is no base64: it holds '*' at character 21",
        ),
        ("data:,a%zz", "is no percent-encoding: it holds '%' at character 8"),
        ("data:,a%4", "is no percent-encoding: it holds '%' at character 8"),
        ("data:,ä", "is no percent-encoding: it holds 'ä' at character 7"),
        ("https://x.example/a.wav", "holds a URL; give a URL as 'audio'"),
        ("s3://bucket/a.wav", "holds a URL; give a URL as 'audio'"),
        (
            "speech.mp3",
            "holds the name of a file; give the content of the file",
        ),
        (
            "C:\\sound files\\a.wav",
            "holds the name of a file; give the content of the file",
        ),
        (
            "b'UklGRg=='",
            "holds the text of a Python bytes object; call .decode() on it first",
        ),
        ("[object Object]", "is no base64: it holds '[' at character 1"),
    ],
)
def test_what_is_wrong_with_a_text_is_told(text: str, wrong: str) -> None:
    with pytest.raises(InlineAudioError) as caught:
        file_in(text)
    assert str(caught.value) == wrong


def test_a_wrong_character_far_into_the_text_is_told_by_its_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inline_audio, "_PIECE", 64)
    with pytest.raises(InlineAudioError, match="'!' at character 1001"):
        file_in("A" * 1000 + "!AAA")


def test_a_form_that_has_eaten_the_pluses_is_noticed() -> None:
    text = plain(os.urandom(10_000)).replace("+", " ")
    with pytest.raises(InlineAudioError, match=r"blanks where '\+' belongs"):
        file_in(text)


def test_an_error_names_the_field() -> None:
    for field in ("audio", "audio_base64"):
        pieces = parse_request({field: "data:audio/wav;base64,A!"}).inline_audio()
        assert pieces is not None
        with pytest.raises(InvalidRequestError) as caught:
            list(pieces)
        assert str(caught.value) == (
            f"Invalid {field}: the text is no base64: it holds '!' at character 24"
        )


def test_a_file_may_hold_32_mib() -> None:
    assert inline_audio.MAX_INLINE_AUDIO_BYTES == 32 * 1024 * 1024


@pytest.mark.parametrize("form", FORMS)
def test_a_file_over_the_limit_is_refused(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_audio, "MAX_INLINE_AUDIO_BYTES", 3000)
    assert file_in(FORMS[form](b"R" * 3000)) == b"R" * 3000
    for size in (3001, 30_000):
        with pytest.raises(InlineAudioError, match="holds more than"):
            file_in(FORMS[form](b"R" * size))


@pytest.mark.parametrize("form", ["lines", "escaped base64", "escaped bytes"])
def test_a_large_file_is_never_copied_as_a_whole(form: str) -> None:
    text = FORMS[form](bytes(3 << 20))
    tracemalloc.start()
    try:
        assert sum(map(len, decoded(text))) == 3 << 20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
