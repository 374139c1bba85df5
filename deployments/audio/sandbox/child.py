"""One decoder: a process that decodes one file and ends."""

import errno
import os
import signal
from typing import BinaryIO, NoReturn

from deployments.audio.decode import decode_into
from deployments.audio.disk import no_room
from deployments.audio.not_audio import kind_of_text
from deployments.audio.sandbox.confinement import Layers, confine
from deployments.audio.sandbox.limits import BYTES_PER_SECOND, ResourceLimits
from deployments.audio.sandbox.messages import Job, Reply
from deployments.contract.errors import (
    AudioTooComplexError,
    AudioUrlError,
    InvalidAudioError,
    WhisperServeError,
)
from deployments.logs import error_location

TOO_COMPLEX = (
    "decoding the file takes more time or memory than a recording can need."
    " Convert the file to WAV or FLAC and send that"
)


def decode(
    job: Job,
    layers: Layers,
    parent: int,
    input_descriptor: int,
    output_descriptor: int,
    reply_descriptor: int,
) -> NoReturn:
    """Confine this process, decode the input into the output, write the reply, and end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # 1 and 2 are the service's log: C libraries could quote the file there, and a decoder that
        # is taken over could forge lines.
        for descriptor in (1, 2):
            os.dup2(0, descriptor)
        _close_all_but(input_descriptor, output_descriptor, reply_descriptor)
        size = os.fstat(input_descriptor).st_size
        # Opened now, because `open` needs a system call that the confinement refuses.
        source = open(input_descriptor, "rb", closefd=False)  # noqa: SIM115
        limits = ResourceLimits(job.limits, size, job.max_seconds)
        confine(limits, parent, layers)
        reply = _decoded(job, source, _Output(output_descriptor, limits))
        _write_all(reply_descriptor, reply.to_bytes())
        status = 0
    finally:
        # No handlers of the zygote's, and no traceback, which could quote the file.
        os._exit(status)


class _Output:
    """Writes the waveform, and allows the process the time that this is worth."""

    def __init__(self, descriptor: int, limits: ResourceLimits) -> None:
        self._descriptor, self._limits, self._written = descriptor, limits, 0

    def write(self, pcm: bytearray) -> None:
        _write_all(self._descriptor, pcm)
        self._written += len(pcm)
        self._limits.extend(self._written / BYTES_PER_SECOND)


def _decoded(job: Job, source: BinaryIO, output: _Output) -> Reply:
    try:
        found = decode_into(
            output.write,
            source,
            job.max_seconds,
            track=job.track,
            channel=job.channel,
        )
        return Reply(found.start_s, tuple(found.warnings))
    except InvalidAudioError as error:
        kind = kind_of_text(source) if job.remote else None
        if kind is None:
            return Reply(error=error)
        text = f"the URL gives {kind}, not an audio file"
        return Reply(error=AudioUrlError(text))
    except WhisperServeError as error:
        return Reply(error=error)
    except MemoryError:
        return Reply(error=AudioTooComplexError(TOO_COMPLEX))
    except OSError as error:
        # The limit on the output counts as a larger file than the file system allows.
        if error.errno == errno.EFBIG:
            return Reply(error=AudioTooComplexError(TOO_COMPLEX))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Reply(error=no_room())
        return _unforeseen(error)
    except Exception as error:  # noqa: BLE001 - whatever a file brings about is told by its place
        return _unforeseen(error)


def _unforeseen(error: Exception) -> Reply:
    return Reply(failure=f"{type(error).__name__}@{error_location(error)}")


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _close_all_but(*kept: int) -> None:
    """Close what the zygote has open: the sockets of other jobs above all."""
    first = 3
    for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(first, descriptor)
        first = descriptor + 1
