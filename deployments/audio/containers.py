"""Opening a recording and reading the packets of one of its audio streams."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from deployments.audio.demuxers import DEMUXERS

# PyAV before 19 raises an error for a tag that is not UTF-8, unless it is told to replace what it
# cannot read.
_TAG_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# A demuxer that found nothing in what it read asks to be called again. Some read one byte at a
# time, so the bound is generous, and stops only a demuxer that never gets further.
_MOST_RETRIES = 100_000

# FFmpeg's log quotes tags and URLs out of the file.
av.logging.set_level(None)


def open_container(file: BinaryIO, start: int = 0) -> InputContainer:
    """Open the container that begins `start` bytes into the file.

    file: seekable; it stays open. Raises FFmpegError.
    """
    file.seek(start)
    source: Any = FileFrom(file, start)
    container: InputContainer = av.open(
        source, "r", container_options=_CONTAINER_OPTIONS, **_TAG_OPTIONS
    )
    return container


@dataclass
class FileFrom:
    """A file from one of its bytes on, as FFmpeg reads a file of its own."""

    file: BinaryIO
    start: int

    @property
    def name(self) -> Any:
        """By their names FFmpeg knows some formats; uploads and downloads have none."""
        return getattr(self.file, "name", "")

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position; negative where there is no such place, as a damaged file may name.

        FFmpeg takes such a number for the error of the system's own call, and goes on as it can. An
        exception would end the decoding.
        """
        if whence == os.SEEK_SET:
            if offset < 0:
                return -errno.EINVAL
            offset += self.start
        try:
            return self.file.seek(offset, whence) - self.start
        except (OSError, ValueError):
            return -errno.EINVAL

    def tell(self) -> int:
        return self.file.tell() - self.start

    def seekable(self) -> bool:
        return True


class PacketReader:
    """The packets of one stream, for as long as its demuxer can read the container.

    begin: where the first packet begins, in bytes of the container
    position, end: where the last packet that came begins and ends; all three stay 0 where the
        demuxer does not tell where its packets come from
    stopped: whether the demuxer gave up before the end of the file
    """

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self.position = self.end = 0
        self._begin: int | None = None
        self.stopped = False
        self._container = container
        self._stream = stream

    @property
    def begin(self) -> int:
        return self._begin or 0

    def __iter__(self) -> "Iterator[Packet[AudioStream]]":
        retries = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    retries = 0
                    # As in the `ffmpeg` program: an empty packet in mid-file must not reach the
                    # decoder, which takes it for the end. PyAV ends every stream with one.
                    if packet.size:
                        self._locate(packet)
                        yield packet
                return
            except BlockingIOError:  # AVERROR(EAGAIN)
                retries += 1
                if retries > _MOST_RETRIES:
                    self.stopped = True
                    return
            except FFmpegError:
                self.stopped = True
                return
            except IndexError:
                # At the end, PyAV looks for streams that began in mid-file, and does not know them.
                return

    def _locate(self, packet: "Packet[AudioStream]") -> None:
        if packet.pos is None:
            return
        if self._begin is None:
            self._begin = packet.pos
        self.position = max(self.position, packet.pos)
        self.end = max(self.end, packet.pos + packet.size)


def _audio_decoders() -> Iterator[str]:
    for name in sorted(av.codecs_available):
        try:
            if av.Codec(name, "r").type == "audio":
                yield name
        except UnknownCodecError:  # an encoder
            continue


_CONTAINER_OPTIONS = {
    "format_whitelist": ",".join(DEMUXERS),
    "protocol_whitelist": "none",
    # Without this, FFmpeg decodes a cover picture or a video frame while it probes the file. That
    # is of no use here, and a small picture can unpack to a gigabyte.
    "codec_whitelist": ",".join(_audio_decoders()),
}
