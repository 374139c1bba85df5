"""Where weights are found, fetched and verified: OpenAI's files, and files of the user's own."""

from deployments.checkpoints.download import fetch
from deployments.checkpoints.store import find, verify

__all__ = ["fetch", "find", "verify"]
