"""The sandbox that the tests share, its processes, and files that keep a decoder busy."""

import io
import struct
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.audio.sandbox.client import Sandbox
from deployments.audio.sandbox.process import ZygoteProcess

# The zygote starts with the first file, and serves the tests of one run.
ZYGOTE = ZygoteProcess()
SANDBOX = Sandbox(ZYGOTE)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process runs no more, also where nobody has asked how it ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def decoders(zygote: ZygoteProcess = ZYGOTE) -> set[psutil.Process]:
    """The processes that decode a file now."""
    pid = zygote.pid
    found = set()
    # A process may end at any moment, the zygote too.
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children() if pid else []:
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.add(child)
    return found


def long_silence(path: Path, seconds: int = 3600, rate: int = 48_000) -> Path:
    """A WAV file that takes seconds to decode. The file is a hole on the disk."""
    size = seconds * rate * 2
    header = b"WAVE" + struct.pack(
        "<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", len(header) + size) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + size)
    return path


def endless_ogg(path: Path, size: int = 1 << 40) -> Path:
    """A file that is read to its end, in hours, and gives no sound behind its first second."""
    speech = Path(__file__).parents[1] / "audio" / "inputs" / "call.ogg"
    path.write_bytes(speech.read_bytes()[: 1 << 15])
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def page() -> io.BytesIO:
    return io.BytesIO(b"<!DOCTYPE html><html><title>Sign in</title></html>")
