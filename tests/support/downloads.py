"""What the tests of the download share."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from deployments.audio.download import FetchLimits, UrlGuard, fetch_audio
from deployments.contract.errors import AudioHostError, AudioUrlError

SOUND = bytes(range(256)) * 2000
SECRET = "/speech.mp3?signature=SECRET"
# Far more than any test needs, so that a busy machine makes no difference.
LIMITS = FetchLimits(
    max_bytes=1 << 20,
    connect_timeout_s=60.0,
    read_timeout_s=60.0,
    total_timeout_s=120.0,
    back_offs_s=(0.01, 0.02),
)
# The tests' servers are on loopback. What is refused by default has tests of its own.
PRIVATE = UrlGuard(allow_private_networks=True, tick_s=0.001)
TOO_LARGE = "file is larger than the limit of 1 MiB (max_download_bytes)"
ONE_TRY = replace(LIMITS, back_offs_s=())
# What a test waits for ends in less than this, and would take much longer if it failed.
PATIENCE_S = 30.0
IMPATIENT = replace(LIMITS, connect_timeout_s=0.2, read_timeout_s=0.2)
ONLY_HTTP = "only http and https can be fetched, also after a redirect"
NO_URL = (
    "this is no URL: give one that begins with http:// or https://,"
    " or send the file itself as 'audio_base64'"
)
OK_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def open_files() -> list[str]:
    paths = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return paths


def download(
    url: str,
    limits: FetchLimits = LIMITS,
    cancelled: Callable[[], bool] = lambda: False,
    headers: Mapping[str, str] | None = None,
    guard: UrlGuard = PRIVATE,
) -> bytes:
    with fetch_audio(url, limits, cancelled, headers, guard) as file:
        return file.read()


def url_error(url: str, limits: FetchLimits = LIMITS, guard: UrlGuard = PRIVATE) -> str:
    """The reason why the URL is at fault."""
    with pytest.raises(AudioUrlError) as caught:
        download(url, limits, guard=guard)
    assert type(caught.value) is AudioUrlError
    return reason_of(caught.value, status=422)


def host_error(
    url: str, limits: FetchLimits = LIMITS, guard: UrlGuard = PRIVATE
) -> str:
    """The reason why the host is at fault."""
    with pytest.raises(AudioHostError) as caught:
        download(url, limits, guard=guard)
    return reason_of(caught.value, status=502)


def reason_of(error: AudioUrlError, status: int) -> str:
    assert error.status == status
    assert error.__cause__ is None and error.__context__ is None
    prefix, _, reason = str(error).partition("Audio download failed: ")
    assert prefix == ""
    return reason


def seconds_since(start: float) -> float:
    return time.monotonic() - start
