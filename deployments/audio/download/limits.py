"""What bounds a download."""

from dataclasses import dataclass

from deployments.contract.errors import AudioUrlError


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one download.

    max_bytes: of the file, as it is sent and after any Content-Encoding is undone
    connect_timeout_s: to reach each address of the host, four at most, and again for the TLS
        handshake
    read_timeout_s: the longest silence of the host
    total_timeout_s: all tries and the waits between them
    back_offs_s: the wait before each further try after a temporary failure; a try that brought the
        file further begins the list again
    """

    max_bytes: int
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float
    back_offs_s: tuple[float, ...] = (0.5, 1.0)

    def check_size(self, n_bytes: int) -> None:
        """Raise AudioUrlError if the file is too large."""
        if n_bytes > self.max_bytes:
            raise AudioUrlError(
                f"file is larger than the limit of {size_text(self.max_bytes)} (max_download_bytes)"
            )


def size_text(n_bytes: int) -> str:
    """Such as `1 GiB`; the plain number where no unit fits."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes % scale == 0:
            return f"{n_bytes // scale} {unit}"
    return f"{n_bytes} bytes"
