"""How much a file lacks by its own header. FFmpeg reads some cut files as if they were whole."""

import os
from collections.abc import Callable
from typing import BinaryIO, Literal

_MOST_CHUNKS = 100
# Programs that write into a pipe cannot know the size, and declare nothing or the greatest.
_UNKNOWN_BYTES = (1 << 31) - (1 << 20)


def missing_bytes(file: BinaryIO, demuxer: str) -> int:
    """How many bytes are missing at the end of a file: of its samples, but of the whole of an AVI.

    file: seekable
    demuxer: FFmpeg's name of the format

    0 where nothing is missing, where the file declares no size, and for all formats but WAV, W64,
    CAF, SoX and AVI: FFmpeg gives the declared length of most of the others.
    """
    declared = _DECLARED.get(demuxer)
    if declared is None:
        return 0
    file.seek(0)
    return max(0, declared(file) - file.seek(0, os.SEEK_END))


def _end_of_wav(file: BinaryIO) -> int:
    # RF64 counts in a chunk of its own, which FFmpeg compares by itself.
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if len(chunk) < 8 or length >= _UNKNOWN_BYTES:
            return 0
        if chunk[:4] == b"data":
            return file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _end_of_w64(file: BinaryIO) -> int:
    """Sony's Wave64: names are GUIDs, sizes have 64 bits and include name and size."""
    head = file.read(40)
    if head[:4] != b"riff":
        return 0
    for _ in range(_MOST_CHUNKS):
        begin, chunk = file.tell(), file.read(24)
        length = int.from_bytes(chunk[16:], "little")
        if not 24 <= length < 1 << 62:
            return 0
        if chunk[:4] == b"data":
            return begin + length
        file.seek(begin + length + -length % 8)
    return 0


def _end_of_caf(file: BinaryIO) -> int:
    """Apple's Core Audio Format; a size of -1 stands for the rest of the file."""
    file.seek(8)
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(12)
        length = int.from_bytes(chunk[4:], "big", signed=True)
        if len(chunk) < 12 or not 0 <= length < 1 << 62:
            return 0
        if chunk[:4] == b"data":
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)
    return 0


def _end_of_sox(file: BinaryIO) -> int:
    """SoX's own format counts its samples, which have 32 bits each."""
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:4] == b".SoX" else "big"
    header = int.from_bytes(head[4:8], order)
    return 4 + header + 4 * int.from_bytes(head[8:], order)


def _end_of_avi(file: BinaryIO) -> int:
    """A long AVI file is several RIFF chunks, one behind the other."""
    end = 0
    for _ in range(_MOST_CHUNKS):
        file.seek(end)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] != b"RIFF" or not 0 < length < _UNKNOWN_BYTES:
            break
        end += 8 + length + length % 2
    return end


_DECLARED: dict[str, Callable[[BinaryIO], int]] = {
    "wav": _end_of_wav,
    "w64": _end_of_w64,
    "caf": _end_of_caf,
    "sox": _end_of_sox,
    "avi": _end_of_avi,
}
