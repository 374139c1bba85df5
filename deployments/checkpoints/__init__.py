"""Where a model's weights are found, fetched and verified."""

from deployments.checkpoints.store import Checkpoint, fetch, find, verify

__all__ = ["Checkpoint", "fetch", "find", "verify"]
