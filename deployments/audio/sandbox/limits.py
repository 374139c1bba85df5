"""How much time, memory and disk the decoding of one file may take.

The bounds are far above what any recording needs, so that only a file meets them that was made to
cost more than it is worth. The time of a CPU grows with the audio that has been decoded: a decoder
that has given nothing yet has 20 seconds and those that reading its file takes.
"""

import resource

from deployments.audio import SAMPLE_RATE

BYTES_PER_SECOND = 2 * SAMPLE_RATE

# A slow core decodes any usual codec at more than a hundred times its speed, and reads hundreds of
# megabytes a second.
_CPU_S, _CPU_S_PER_AUDIO_S, _BYTES_PER_CPU_S = 20, 1 / 20, 50_000_000
# By the clock. Decoders may share the CPUs with the replicas, and wait for the disk.
_WALL_S, _WALL_S_PER_AUDIO_S, _BYTES_PER_WALL_S = 120, 1 / 10, 10_000_000
# A zygote maps 0.2 GB before it decodes anything. Some containers are read as a single packet.
_MEMORY_BYTES = 1 << 30
# Beyond the longest waveform: what a resampler still holds at the end.
_OUTPUT_SLACK_BYTES = 1 << 20


def deadline_s(file_bytes: int, max_seconds: float) -> float:
    """How many seconds the decoding of a file may take by the clock.

    file_bytes: the file's size
    max_seconds: the longest recording allowed
    """
    return _WALL_S + file_bytes / _BYTES_PER_WALL_S + max_seconds * _WALL_S_PER_AUDIO_S


def max_output_bytes(max_seconds: float) -> int:
    """The largest waveform file that a decoder may write."""
    return int(max_seconds * BYTES_PER_SECOND) + _OUTPUT_SLACK_BYTES


class ResourceLimits:
    """The limits that the kernel holds a decoder's process to.

    file_bytes, max_seconds: as in `deadline_s`
    """

    def __init__(self, file_bytes: int, max_seconds: float) -> None:
        self._file_bytes = file_bytes
        self._most_cpu_s = self._cpu_s(max_seconds) + 1
        self._output_bytes = max_output_bytes(max_seconds)

    def apply(self) -> None:
        """Limit this process, for good."""
        for kind, limit in (
            (resource.RLIMIT_AS, _MEMORY_BYTES + self._output_bytes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, self._output_bytes),
            # No further descriptor: no file, no socket. What is open stays open.
            (resource.RLIMIT_NOFILE, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            resource.setrlimit(kind, (limit, limit))
        self.extend(0)

    def extend(self, audio_s: float) -> None:
        """Allow the time of a CPU that `audio_s` seconds of decoded audio are worth.

        More than that, and the kernel ends the process by SIGXCPU.
        """
        soft = min(self._cpu_s(audio_s), self._most_cpu_s)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, self._most_cpu_s))

    def _cpu_s(self, audio_s: float) -> int:
        reading = self._file_bytes / _BYTES_PER_CPU_S
        return int(_CPU_S + reading + audio_s * _CPU_S_PER_AUDIO_S)
