"""The download of an audio URL, bounded in size and in time, from hosts that may be asked."""

from deployments.audio.download.fetch import fetch_audio
from deployments.audio.download.limits import FetchLimits
from deployments.audio.download.url_guard import UrlGuard

__all__ = ["FetchLimits", "UrlGuard", "fetch_audio"]
