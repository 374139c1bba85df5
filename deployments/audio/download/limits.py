"""What bounds a download."""

from dataclasses import dataclass

from deployments.audio.sizes import size_text
from deployments.contract.errors import AudioUrlError


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one download.

    max_bytes: of the file, as it is sent and after any Content-Encoding is undone
    connect_timeout_s: to reach each address of the host, four at most, and again for the TLS
        handshake
    read_timeout_s: the longest silence of the host
    total_timeout_s: all tries and the waits between them
    min_bytes_per_s: of the body, on average over each `throughput_window_s`; 0: no minimum, also
        where the host tells a size that it will not have sent by `total_timeout_s`. Waits
        between tries do not count, nor does the time until an answer begins, for which a try has
        `read_timeout_s` and one such window
    back_offs_s: the wait before each further try after a temporary failure; a try that brought the
        file further begins the list again
    """

    max_bytes: int
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float
    min_bytes_per_s: float = 0.0
    throughput_window_s: float = 30.0
    back_offs_s: tuple[float, ...] = (0.5, 1.0)

    def check_size(self, n_bytes: int) -> None:
        """Raise AudioUrlError if the file is too large."""
        if n_bytes > self.max_bytes:
            raise AudioUrlError(
                f"file is larger than the limit of {size_text(self.max_bytes)} (max_download_bytes)"
            )
