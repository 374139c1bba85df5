"""Where weights are found, fetched and verified: OpenAI's files, and files of the user's own."""

from deployments.checkpoints.download import UnreachableError, fetch
from deployments.checkpoints.store import find, verify

__all__ = ["UnreachableError", "fetch", "find", "verify"]
