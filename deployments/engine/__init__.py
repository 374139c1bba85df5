"""Transcription of many recordings at once with one model. Knows nothing of Ray, HTTP, URLs or files."""

from deployments.engine.engine import Engine, EngineStats
from deployments.engine.process import own_process
from deployments.engine.tasks import (
    EngineClosedError,
    TranscriptionCancelled,
    Usage,
)

__all__ = [
    "Engine",
    "EngineClosedError",
    "EngineStats",
    "TranscriptionCancelled",
    "Usage",
    "own_process",
]
