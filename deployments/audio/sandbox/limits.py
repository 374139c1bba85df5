"""How much time, memory and disk the decoding of one file may take."""

import resource
from dataclasses import dataclass

from deployments.audio import SAMPLE_RATE

BYTES_PER_SECOND = 2 * SAMPLE_RATE


@dataclass(frozen=True)
class Limits:
    """The bounds, far above what a recording needs: only a file that was made for it meets them.

    A core decodes the usual codecs a thousand times as fast as they play. Many channels at a high
    rate take more time, and more bytes. So the time of a CPU depends on the size of the file, and
    grows with the audio that has been decoded.

    cpu_s: for a small file that gives nothing
    cpu_s_per_audio_s, cpu_s_per_byte: more for each second decoded, and for each byte of the file
    wall_s_per_cpu_s, wall_s: by the clock, the larger of both: decoders share the CPUs with the
        replicas and wait for the disk
    memory_bytes: of addresses. The zygote has 0.2 GB of them before it decodes anything, and some
        containers are read as a single packet
    extra_output_bytes: beyond the longest waveform, for what a resampler holds at the end
    """

    cpu_s: float = 20.0
    cpu_s_per_audio_s: float = 1 / 100
    cpu_s_per_byte: float = 1 / 5_000_000
    wall_s_per_cpu_s: float = 3.0
    wall_s: float = 60.0
    memory_bytes: int = 3 << 29
    extra_output_bytes: int = 1 << 20

    def cpu_seconds(self, file_bytes: int, audio_s: float) -> int:
        """Seconds of a CPU for a file of this size that has given so much audio."""
        seconds = self.cpu_s + file_bytes * self.cpu_s_per_byte
        return int(seconds + audio_s * self.cpu_s_per_audio_s)

    def deadline_s(self, file_bytes: int, max_seconds: float) -> float:
        """Seconds by the clock for a file of this size.

        max_seconds: the longest recording allowed
        """
        cpu_s = self.cpu_seconds(file_bytes, max_seconds)
        return max(self.wall_s, cpu_s * self.wall_s_per_cpu_s)

    def output_bytes(self, max_seconds: float) -> int:
        """The largest file that a decoder may write."""
        return int(max_seconds * BYTES_PER_SECOND) + self.extra_output_bytes


class ResourceLimits:
    """The limits that the kernel holds a decoder's process to.

    file_bytes, max_seconds: as in `Limits.deadline_s`
    """

    def __init__(self, limits: Limits, file_bytes: int, max_seconds: float) -> None:
        self._limits, self._file_bytes = limits, file_bytes
        self._output_bytes = limits.output_bytes(max_seconds)
        # At the hard limit the kernel does not send SIGXCPU but SIGKILL.
        self._most_cpu_s = limits.cpu_seconds(file_bytes, max_seconds) + 1

    def apply(self) -> None:
        """Limit this process, for good."""
        for kind, limit in (
            (resource.RLIMIT_AS, self._limits.memory_bytes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, self._output_bytes),
            # No further descriptor: no file, no socket. What is open stays open.
            (resource.RLIMIT_NOFILE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            lower = _at_most(limit, resource.getrlimit(kind)[1])
            resource.setrlimit(kind, (lower, lower))
        self.extend(0)

    def extend(self, audio_s: float) -> None:
        """Allow the time of a CPU for so many seconds of decoded audio.

        A process that takes more ends by SIGXCPU.
        """
        hard = _at_most(self._most_cpu_s, resource.getrlimit(resource.RLIMIT_CPU)[1])
        wanted = self._limits.cpu_seconds(self._file_bytes, audio_s)
        resource.setrlimit(resource.RLIMIT_CPU, (_at_most(wanted, hard), hard))


def _at_most(limit: int, hard: int) -> int:
    """A limit cannot be raised above the one that holds."""
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)
