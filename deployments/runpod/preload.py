"""Imported by the server that the heartbeat's process is forked from, and by nothing else."""

import os

from deployments.runpod import environment as runpod_environment

# The start of the service, and its work, go first.
os.nice(10)
runpod_environment.prepare()

from runpod.serverless.modules import rp_ping  # noqa: F401
