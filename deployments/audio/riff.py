"""How much audio a WAV file declares. FFmpeg reads a file that was cut as if it were whole."""

import os
from typing import BinaryIO

# RF64 counts in a chunk of its own, which FFmpeg compares by itself.
_MAGIC, _KIND, _DATA = b"RIFF", b"WAVE", b"data"
_MOST_CHUNKS = 100
# Programs that write into a pipe cannot know the size, and declare nothing or the greatest.
_UNKNOWN_BYTES = (1 << 31) - (1 << 20)


def missing_bytes(file: BinaryIO) -> int:
    """How many bytes of its samples a WAV file lacks at its end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] != _MAGIC or head[8:] != _KIND:
        return 0
    position = len(head)
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            return 0
        length = int.from_bytes(chunk[4:], "little")
        position += len(chunk)
        if chunk[:4] == _DATA:
            return max(0, position + length - size) if length < _UNKNOWN_BYTES else 0
        position += length + length % 2
    return 0
