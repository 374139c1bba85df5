"""The pages of an Ogg file: where the parts of a chained file begin, and whether one was cut.

A chained file is several Ogg streams, one behind the other, as internet radio and `cat` make it.
FFmpeg's demuxer ends where a part has another rate or other channels than the part before, so such
a part is opened by itself. The format of a page is that of RFC 3533, section 6.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

_MAGIC = b"OggS"
_HEADER_BYTES = 27
_BEGINS_A_STREAM = 0x02
_CHUNK = 1 << 16


def next_part(file: BinaryIO, start: int) -> int | None:
    """The byte at which the next part begins; None where there is none.

    start: the byte at which some page of the part before begins
    """
    behind_first_pages = False
    for position, flags, _ in _pages(file, start):
        # A part begins with one such page for each of its streams.
        if not flags & _BEGINS_A_STREAM:
            behind_first_pages = True
        elif behind_first_pages:
            return position
    return None


def ends_within_page(file: BinaryIO, start: int) -> bool:
    """Whether the file was cut: its last page is not whole.

    start: the byte at which one of the last pages begins
    """
    size = file.seek(0, os.SEEK_END)
    return any(end > size for _, _, end in _pages(file, start))


def _pages(file: BinaryIO, start: int) -> Iterator[tuple[int, int, int]]:
    """Where each page begins, its flags, and where it ends."""
    position = _find_page(file, start)
    while position is not None:
        file.seek(position)
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return
        segments = file.read(header[26])
        end = position + _HEADER_BYTES + len(segments) + sum(segments)
        yield position, header[5], end
        position = _find_page(file, end)


def _find_page(file: BinaryIO, position: int) -> int | None:
    """The first page at this byte or behind it: damage may lie between two pages."""
    file.seek(position)
    chunk = file.read(len(_MAGIC))
    while len(chunk) >= len(_MAGIC):
        found = chunk.find(_MAGIC)
        if found >= 0:
            return position + found
        kept = len(_MAGIC) - 1
        position += len(chunk) - kept
        chunk = chunk[-kept:] + file.read(_CHUNK)
    return None
