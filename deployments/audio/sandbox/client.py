"""Decodes files in the zygote's children, from an event loop that is never blocked."""

import asyncio
import hashlib
import io
import mmap
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import numpy.typing as npt

from deployments.audio.decode import DecodedAudio
from deployments.audio.disk import disk_full_reported
from deployments.audio.sandbox.messages import MAX_MESSAGE_BYTES, Ended, Job, Reply
from deployments.audio.sandbox.process import ZygoteProcess

_TRIES = 2
# A zygote that is well kills a decoder within milliseconds, but on a busy machine one that has just
# been started may take seconds to begin.
_KILLED_WITHIN_S = 30.0

T = TypeVar("T")


class FatalFileError(Exception):
    """The decoder of a file has come to a bad end.

    sha256: of the file, so that an operator can find it again where it is kept
    """

    sha256 = ""


class DecoderDiedError(FatalFileError):
    """The process that decoded the file has died of it, or was killed at the deadline.

    reason: the name of the signal; `deadline`; or `reply` where its reply made no sense
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecoderStarvedError(DecoderDiedError):
    """The process was killed, or not done at the deadline, for want of memory or CPU time.

    Decoding that takes too long for its file ends by SIGXCPU, or by SIGKILL once it has used up its
    time. So the file is not at fault here: the kernel ends decoders first where memory runs out,
    and the deadline comes first only where a decoder gets less than a third of a CPU.
    """


class DecoderFailedError(FatalFileError):
    """The decoder has met an error that is not foreseen.

    where: the error's name and place, such as `KeyError@mono.py:57`
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


class DecoderLostError(Exception):
    """The zygote has died, or cannot start or fork; its decoders end with it."""


class Sandbox:
    """Decodes any number of files at once, each in a process of its own.

    zygote: may serve several of these; None: one of its own
    """

    def __init__(self, zygote: ZygoteProcess | None = None) -> None:
        self._zygote = zygote or ZygoteProcess()
        # An event loop alone does not keep a task from being collected.
        self._working: set[asyncio.Task[DecodedAudio]] = set()

    def start(self) -> None:
        """Start the zygote now and not with the first file. Does not wait for it."""
        self._zygote.start()

    def close(self) -> None:
        """End the zygote with all that it decodes. Waits until they have ended."""
        self._zygote.close()

    async def decode(
        self,
        file: BinaryIO,
        job: Job,
        when_ended: Callable[[], object] = lambda: None,
    ) -> DecodedAudio:
        """Decode a file. The samples are read-only, and lie in a file without a name on the disk.

        A call that is cancelled returns at once. Its decoder, which has the file open by itself, is
        killed soon after.

        file: seekable; decoded from its first byte on; it stays open, and may be closed after the
            call
        when_ended: called once, when the call has no decoder any more

        Raises DecoderDiedError, DecoderStarvedError, DecoderFailedError, DecoderLostError,
        OverloadedError where the disk has no room, and what `decode_audio` raises.
        """
        with ExitStack() as opened:
            opened.callback(when_ended)
            files = await _in_thread(_open_files, file, opened)
            working = asyncio.create_task(self._decode(files, job))
            held = opened.pop_all()
        self._working.add(working)
        working.add_done_callback(lambda _: self._end(working, held))
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError:
            working.cancel()
            raise
        return working.result()

    def _end(self, working: "asyncio.Task[DecodedAudio]", held: ExitStack) -> None:
        self._working.remove(working)
        held.close()
        if not working.cancelled():
            # Where the caller was cancelled, nobody else asks, and asyncio would log the error.
            working.exception()

    async def _decode(self, files: "_Files", job: Job) -> DecodedAudio:
        try:
            reply = await self._run_twice(files, job)
            if reply.error is not None:
                raise reply.error
            most_bytes = job.limits.output_bytes(job.max_seconds)
            samples = _mapped(files.waveform, most_bytes)
        except FatalFileError as error:
            error.sha256 = await _in_thread(_sha256, files.recording)
            raise
        return DecodedAudio(samples, reply.start_s, list(reply.warnings))

    async def _run_twice(self, files: "_Files", job: Job) -> Reply:
        try:
            return await self._run(files, job)
        except (DecoderLostError, DecoderStarvedError) as error:
            # A second wait as long as the first would hold up other files.
            if isinstance(error, DecoderStarvedError) and error.reason == "deadline":
                raise
            # As it was before: a decoder may have written some of it.
            files.waveform.truncate(0)
            files.waveform.seek(0)
            return await self._run(files, job)

    async def _run(self, files: "_Files", job: Job) -> Reply:
        """One decoder's reply. The decoder has ended when this returns or raises."""
        with ExitStack() as stack:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            replies, reply = socket.socketpair()
            for end in control, replies:
                stack.enter_context(end).setblocking(False)
            with theirs, reply:
                handed = (theirs, reply, files.recording, files.waveform)
                try:
                    self._zygote.submit(
                        job.to_bytes(), [end.fileno() for end in handed]
                    )
                except OSError:
                    raise DecoderLostError from None
            decoding = asyncio.ensure_future(_outcome(control, replies))
            try:
                limit = job.limits.deadline_s(files.size, job.max_seconds)
                await asyncio.wait([decoding], timeout=limit)
            finally:
                expired = not decoding.done()
                if expired:
                    await self._kill(control, decoding)
        told, ended = decoding.result()
        most_cpu_s = job.limits.cpu_seconds(files.size, job.max_seconds)
        return _reply_of(told, ended, expired, most_cpu_s)

    async def _kill(
        self, control: socket.socket, decoding: "asyncio.Future[Any]"
    ) -> None:
        _ask_to_kill(control)
        loop = asyncio.get_running_loop()
        hung = loop.call_later(_KILLED_WITHIN_S, self._zygote.kill)
        try:
            await _to_the_end(decoding)
        finally:
            hung.cancel()


@dataclass(frozen=True)
class _Files:
    """What a decoder reads and writes, as descriptors of their own, with a place of their own.

    size: of the recording, in bytes
    """

    recording: BinaryIO
    waveform: BinaryIO
    size: int


def _open_files(file: BinaryIO, stack: ExitStack) -> _Files:
    """Blocks. Raises OverloadedError where the disk has no room."""
    with disk_full_reported():
        waveform = stack.enter_context(_new_file())
        file.flush()
        try:
            descriptor = file.fileno()
        except io.UnsupportedOperation:  # a file in memory
            spooled = stack.enter_context(_new_file())
            file.seek(0)
            shutil.copyfileobj(file, spooled)
            descriptor = spooled.fileno()
        # Opened anew, so that the decoder can neither write the file nor move the owner's place.
        again = open(f"/proc/self/fd/{descriptor}", "rb", buffering=0)  # noqa: SIM115
        recording = stack.enter_context(again)
    return _Files(recording, waveform, os.fstat(descriptor).st_size)


def _new_file() -> BinaryIO:
    """Without a name on the disk."""
    # Not buffered, because what lies in it is written by another process.
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))


async def _outcome(
    control: socket.socket, replies: socket.socket
) -> tuple[bytes, bytes]:
    """What the decoder and what the zygote tells, when both have ended."""
    told = await _read_to_end(replies)
    if len(told) > MAX_MESSAGE_BYTES:
        _ask_to_kill(control)
    return told, await _read_to_end(control)


async def _read_to_end(end: socket.socket) -> bytes:
    """Or until more has come than any message has."""
    loop, read = asyncio.get_running_loop(), bytearray()
    while len(read) <= MAX_MESSAGE_BYTES:
        # A process that dies with something unread resets the connection.
        with suppress(ConnectionResetError):
            if piece := await loop.sock_recv(end, MAX_MESSAGE_BYTES):
                read += piece
                continue
        break
    return bytes(read)


def _ask_to_kill(control: socket.socket) -> None:
    with suppress(OSError):
        control.shutdown(socket.SHUT_WR)


def _reply_of(
    told: bytes, ended_told: bytes, expired: bool, most_cpu_s: float
) -> Reply:
    if not ended_told:
        raise DecoderLostError
    ended = Ended.from_bytes(ended_told)
    if expired:
        raise DecoderStarvedError("deadline")
    if ended.signal and len(told) <= MAX_MESSAGE_BYTES:
        name = signal.Signals(ended.signal).name
        if name == "SIGKILL" and ended.cpu_s < most_cpu_s:
            raise DecoderStarvedError(name)
        raise DecoderDiedError(name)
    try:
        reply = Reply.from_bytes(told)
    except ValueError:
        raise DecoderDiedError("reply") from None
    if reply.failure is not None:
        raise DecoderFailedError(reply.failure)
    return reply


def _mapped(waveform: BinaryIO, most_bytes: int) -> npt.NDArray[np.int16]:
    """The file's samples, read from the disk when they are used."""
    size = os.fstat(waveform.fileno()).st_size
    if not 0 < size <= most_bytes or size % 2:
        raise DecoderDiedError("reply")
    mapping = mmap.mmap(waveform.fileno(), size, prot=mmap.PROT_READ)
    return np.frombuffer(mapping, dtype=np.int16)


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(cast(io.BytesIO, file), "sha256").hexdigest()


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, but a caller who is cancelled waits until the thread has ended."""
    return await _to_the_end(asyncio.ensure_future(asyncio.to_thread(work, *arguments)))


async def _to_the_end(work: "asyncio.Future[T]") -> T:
    """Wait for the work, also where the caller is cancelled meanwhile, and then be cancelled."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return work.result()
