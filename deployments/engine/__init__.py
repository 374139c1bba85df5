"""Transcription of many recordings with one model. Knows nothing of Ray, HTTP, URLs or files."""

from deployments.engine.engine import Engine, EngineClosedError, EngineStats
from deployments.engine.long_form import TranscriptionCancelled

__all__ = ["Engine", "EngineClosedError", "EngineStats", "TranscriptionCancelled"]
