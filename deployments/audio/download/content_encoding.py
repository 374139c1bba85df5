"""A Content-Encoding that was not asked for.

The download asks for the file as it is. Some storages compress nevertheless, as gzip or deflate,
and some only say so: a header that is not true of the body is ignored, and the body is the file.
"""

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from deployments.contract.errors import AudioHostError

_CHUNK_BYTES = 1 << 16
_GZIP, _ZLIB, _RAW_DEFLATE = zlib.MAX_WBITS + 16, zlib.MAX_WBITS, -zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def undo_content_encoding(
    file: BinaryIO, header: str, check: Callable[[int], None]
) -> None:
    """Replace the content of `file` by what it was before it was encoded.

    header: the value of Content-Encoding
    check: called with the size so far; its exceptions end the work

    Raises AudioHostError where the body is damaged, or is really zstd. A body in brotli, which
    cannot be told from others by its beginning, stays as it is.
    """
    for coding in reversed([name.strip().lower() for name in header.split(",")]):
        file.seek(0)
        head = file.read(len(_ZSTD_MAGIC))
        if coding == "zstd" and head == _ZSTD_MAGIC:
            raise AudioHostError(
                "the host compressed the file with zstd, which was not asked for"
            )
        wbits = _window_bits(coding, head[:2])
        if wbits is not None:
            _inflate(file, wbits, check)


def _window_bits(coding: str, head: bytes) -> int | None:
    """How zlib is to read a body that begins so; None if the body is not in this coding."""
    if coding in ("gzip", "x-gzip"):
        return _GZIP if head == _GZIP_MAGIC else None
    if coding == "deflate":
        # By the standard a zlib stream (RFC 1950, section 2.2); some hosts send the deflate stream
        # that is inside one, which cannot be known by its beginning.
        is_zlib = (
            len(head) == 2 and head[0] & 15 == 8 and int.from_bytes(head) % 31 == 0
        )
        return _ZLIB if is_zlib else _RAW_DEFLATE
    return None


def _inflate(file: BinaryIO, wbits: int, check: Callable[[int], None]) -> None:
    file.seek(0)
    with tempfile.TemporaryFile() as plain:
        try:
            for chunk in _inflated(file, wbits):
                check(plain.tell() + len(chunk))
                plain.write(chunk)
            is_whole = True
        except (zlib.error, EOFError):
            is_whole = False
        if is_whole:
            plain.seek(0)
            file.seek(0)
            file.truncate()
            shutil.copyfileobj(plain, file)
    # Outside the except block, whose exception would become the context of this one.
    if not is_whole and wbits != _RAW_DEFLATE:
        raise AudioHostError("damaged content encoding")


def _inflated(file: BinaryIO, wbits: int) -> Iterator[bytes]:
    """Raises zlib.error (not a stream of this kind) and EOFError (cut short)."""
    inflater = zlib.decompressobj(wbits)
    data = file.read(_CHUNK_BYTES)
    while True:
        chunk = inflater.decompress(data, _CHUNK_BYTES)
        yield chunk
        if inflater.eof:
            data = inflater.unused_data + file.read(_CHUNK_BYTES)
            if data and wbits == _RAW_DEFLATE:
                raise zlib.error("not a deflate stream alone")
            # One gzip file may follow another; whatever else follows is padding.
            if wbits != _GZIP or not data.startswith(_GZIP_MAGIC):
                return
            inflater = zlib.decompressobj(wbits)
        elif data or chunk:
            data = inflater.unconsumed_tail or file.read(_CHUNK_BYTES)
        else:
            raise EOFError
