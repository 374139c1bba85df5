"""A file inside a request: base64 as clients write it, or a `data:` URI (RFC 2397).

The text may hold 45 MB, so it is read in pieces, and nothing but a piece is ever copied.
"""

import binascii
import re
from collections.abc import Iterator

MAX_INLINE_AUDIO_BYTES = 32 << 20

# A multiple of four, so that a piece of clean base64 is decoded by itself.
_PIECE = 1 << 18
# A media type with its parameters is shorter than this.
_LONGEST_HEADER = 1000
_DATA_URI = re.compile(r"\s*data:", re.IGNORECASE)
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PYTHON_BYTES = re.compile(r"\s*b['\"]")
_PATH = re.compile(
    r"\s*(?:~?/|\.{1,2}/|[a-z]:[\\/])?[^\n]{0,500}\.[a-z0-9]{2,5}\s*", re.IGNORECASE
)
# How much of the beginning is looked at for blanks in odd places.
_SAMPLE = 4096
# Only ASCII stands in a URI, and a percent sign only before two digits.
_WRONG_IN_URI = re.compile(r"[^\x00-\x7f]|%(?![0-9A-Fa-f]{2})")
_BLANKS = b" \t\r\n\f\v"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class InlineAudioError(ValueError):
    """The text holds no file. `str(error)` says what is wrong with it."""


def is_data_uri(text: str) -> bool:
    return _DATA_URI.match(text) is not None


def decoded(text: str) -> Iterator[bytes]:
    """The file in a text of base64 or in a `data:` URI, in pieces.

    Line breaks and blanks, missing padding, and the alphabet that is safe in URLs are read.
    Raises InlineAudioError, at any piece.
    """
    if is_data_uri(text):
        pieces = _of_data_uri(text)
    elif wrong := _something_else(text):
        raise InlineAudioError(wrong)
    else:
        pieces = _of_base64(_pieces(text, 0))
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_INLINE_AUDIO_BYTES:
            most = MAX_INLINE_AUDIO_BYTES >> 20
            raise InlineAudioError(f"holds more than {most} MiB; give a URL instead")
        yield piece
    if not size:
        raise InlineAudioError("holds no data")


def _something_else(text: str) -> str | None:
    """What a text is that is neither base64 nor a `data:` URI, as far as its beginning tells."""
    if _URL.match(text):
        return "holds a URL; give a URL as 'audio'"
    if _PYTHON_BYTES.match(text):
        return "holds the text of a Python bytes object; call .decode() on it first"
    if len(text) < 1000 and _PATH.fullmatch(text):
        return "holds the name of a file; give the content of the file"
    return None


# A piece of text, and its position in the whole of it.
_Pieces = Iterator[tuple[str, int]]


def _pieces(text: str, start: int) -> _Pieces:
    for position in range(start, len(text), _PIECE):
        yield text[position : position + _PIECE], position


def _unescaped(pieces: _Pieces) -> Iterator[bytes]:
    """Without percent-encoding. What stays of each piece is ASCII, or came out of an escape."""
    rest, start = "", 0
    for piece, position in pieces:
        text, start = rest + piece, position - len(rest)
        # An escape may go on in the next piece.
        cut = text.find("%", max(0, len(text) - 2))
        rest, text = (text[cut:], text[:cut]) if cut >= 0 else ("", text)
        yield _unescape(text, start)
        start += len(text)
    yield _unescape(rest, start)


def _unescape(text: str, position: int) -> bytes:
    if wrong := _WRONG_IN_URI.search(text):
        raise _wrong_character(text, position, wrong.start(), "percent-encoding")
    # Quoted-printable is the same with another sign, and is decoded in C.
    data = text.encode().replace(b"=", b"=3D").replace(b"%", b"=")
    return binascii.a2b_qp(data)


def _of_data_uri(text: str) -> Iterator[bytes]:
    comma = text.find(",", 0, _LONGEST_HEADER)
    if comma < 0:
        raise InlineAudioError("is a data URI without a comma, and so without data")
    parameters = text[:comma].lower().split(";")[1:]
    pieces = _pieces(text, comma + 1)
    if "base64" not in [parameter.strip() for parameter in parameters]:
        return _unescaped(pieces)
    if text.find("%", comma) >= 0:
        characters = (piece.decode("latin-1") for piece in _unescaped(pieces))
        pieces = _with_positions(characters, comma + 1)
    return _of_base64(pieces)


def _with_positions(pieces: Iterator[str], start: int) -> _Pieces:
    for piece in pieces:
        yield piece, start
        start += len(piece)


def _of_base64(pieces: _Pieces) -> Iterator[bytes]:
    rest = b""
    padded_at: int | None = None
    for number, (piece, position) in enumerate(pieces):
        if number == 0 and _lost_its_pluses(piece[:_SAMPLE]):
            raise InlineAudioError(
                "is no base64: it holds blanks where '+' belongs, as in a form without"
                " percent-encoding"
            )
        data = _clean(piece, position)
        end = data.find(b"=")
        if padded_at is not None and data.strip(b"="):
            raise _after_padding(padded_at)
        if end >= 0 and padded_at is None:
            padded_at = position + piece.index("=")
            if data[end:].strip(b"="):
                raise _after_padding(padded_at)
        data = rest + (data[:end] if end >= 0 else data)
        whole = len(data) // 4 * 4
        yield binascii.a2b_base64(data[:whole])
        rest = data[whole:]
    if len(rest) == 1:
        raise InlineAudioError("is cut off: its base64 ends within a byte")
    yield binascii.a2b_base64(rest + b"=" * (-len(rest) % 4))


def _clean(piece: str, position: int) -> bytes:
    """The piece in the usual alphabet, without blanks."""
    try:
        data = piece.encode("ascii").translate(_URL_SAFE, _BLANKS)
    except UnicodeEncodeError as error:
        raise _wrong_character(piece, position, error.start) from None
    wrong = data.translate(None, _ALPHABET + b"=")
    if wrong:
        raise _wrong_character(piece, position, piece.index(chr(wrong[0])))
    return data


def _lost_its_pluses(text: str) -> bool:
    """Whether blanks stand where no line ends. Such text decodes, but not to the file."""
    words = text.strip().split(" ")
    return len({len(word) for word in words[:-1]}) > 1 and not re.search(
        r"[+\s-]", text.replace(" ", "")
    )


def _wrong_character(
    piece: str, position: int, index: int, form: str = "base64"
) -> InlineAudioError:
    character = piece[index]
    shown = repr(character) if character.isprintable() else f"U+{ord(character):04X}"
    at = position + index + 1
    return InlineAudioError(f"is no {form}: it holds {shown} at character {at}")


def _after_padding(padded_at: int) -> InlineAudioError:
    return InlineAudioError(
        f"is no base64: data follow the padding ('=') at character {padded_at + 1}"
    )
