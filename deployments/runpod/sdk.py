"""Every tie to RunPod's SDK, which is pinned; no other module imports it.

The SDK has a loop of its own (`rp_scale.JobScaler`). It asks again at once where the job API cannot
be reached, gives a result up after seven seconds, loses a job that arrives together with SIGTERM,
and waits up to 90 s for its long polls before it exits. None of that can be configured, so
`loop.py` and `job_api.py` stand in its place. They use what the SDK's loop is made of: its session,
its two polls, its record of the jobs in work, and its URLs.

tests/runpod/test_sdk.py names what is relied on, so that an upgrade that changes it fails there.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

import runpod.serverless
from runpod.http_client import AsyncClientSession, TooManyRequests
from runpod.serverless.modules.rp_http import JOB_DONE_URL, JOB_STREAM_URL
from runpod.serverless.modules.rp_job import get_job, get_stop_signals
from runpod.serverless.modules.worker_state import (
    IS_LOCAL_TEST,
    WORKER_ID,
    JobsProgress,
)
from runpod.version import __version__

__all__ = [
    "VERSION",
    "WORKER_ID",
    "AsyncClientSession",
    "JobsProgress",
    "TooManyRequests",
    "do_test_job",
    "get_job",
    "get_stop_signals",
    "has_test_job",
    "result_url",
    "stream_url",
]

VERSION: str = __version__

Job = dict[str, Any]
Handler = Callable[[Job], Coroutine[Any, Any, dict[str, Any]]]


def result_url(job_id: str) -> str:
    """Where a job's progress and its result are posted."""
    return _url(JOB_DONE_URL, job_id)


def stream_url(job_id: str) -> str:
    """Where a job's segments are posted."""
    return _url(JOB_STREAM_URL, job_id)


def _url(template: str, job_id: str) -> str:
    return f"{template.replace('$ID', job_id)}&isStream=false"


def has_test_job() -> bool:
    """Whether to do one job and end: `--test_input`, or test_input.json without a job API."""
    return IS_LOCAL_TEST or any(
        argument.startswith("--test_input") for argument in sys.argv[1:]
    )


def do_test_job(handler: Handler) -> None:
    """Raises SystemExit: 0 where the job succeeded, 1 where it failed."""
    runpod.serverless.start({"handler": handler})
