"""The download of an audio URL, bounded in size and in time."""

from deployments.audio.download.fetch import fetch_audio
from deployments.audio.download.limits import FetchLimits

__all__ = ["FetchLimits", "fetch_audio"]
