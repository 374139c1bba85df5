"""Every tie to RunPod's SDK, which is pinned; no other module imports it.

The SDK has a loop of its own (`rp_scale.JobScaler`). That loop retries without a pause where the
job API cannot be reached, gives up a result after seven seconds, loses a job that arrives together
with SIGTERM, and waits up to 90 s for its long polls before it exits. None of that can be
configured, so `loop.py` and `job_api.py` replace it. They use parts of the SDK: its session, its
record of the jobs in work, and its URLs. `job_api.py` makes the two polls itself, because the SDK
raises the same error for a job without an input as for anything unforeseen, and has no limit for
connecting.

With a job API the SDK is not started, so three of its options have no effect: `--rp_serve_api`,
`--rp_log_level` (RUNPOD_LOG_LEVEL has one) and RUNPOD_REALTIME_PORT. See `ignored_options`.

tests/runpod/test_sdk.py names what is relied on, so that an upgrade that changes it fails there.
"""

import os
import sys

import runpod.serverless
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import JOB_DONE_URL, JOB_STREAM_URL
from runpod.serverless.modules.rp_job import _job_get_url, _job_stop_url
from runpod.serverless.modules.worker_state import (
    IS_LOCAL_TEST,
    WORKER_ID,
    JobsProgress,
)
from runpod.version import __version__

from deployments.runpod.job import Handler

__all__ = [
    "VERSION",
    "WORKER_ID",
    "AsyncClientSession",
    "JobsProgress",
    "do_test_job",
    "has_test_job",
    "ignored_options",
    "result_url",
    "stop_url",
    "stream_url",
    "take_url",
]

VERSION: str = __version__

_START_OPTIONS = ("--rp_serve_api", "--rp_log_level")


def take_url(count: int) -> str:
    """The URL of up to `count` new jobs. Its query says whether the worker has jobs in work."""
    url: str = _job_get_url(count)
    return url


def stop_url() -> str | None:
    """The URL of stop signals; None if it cannot be derived from `take_url`."""
    url: str | None = _job_stop_url()
    return url


def result_url(job_id: str) -> str:
    """The URL to which a job's progress and its result are posted."""
    return _url(JOB_DONE_URL, job_id)


def stream_url(job_id: str) -> str:
    """The URL to which the pieces of a job's stream are posted."""
    return _url(JOB_STREAM_URL, job_id)


def _url(template: str, job_id: str) -> str:
    return f"{template.replace('$ID', job_id)}&isStream=false"


def has_test_job() -> bool:
    """Whether to do one job and end: `--test_input`, or test_input.json without a job API."""
    return IS_LOCAL_TEST or any(
        argument.startswith("--test_input") for argument in sys.argv[1:]
    )


def ignored_options() -> list[str]:
    """The options of the SDK's that are set, and have no effect beside a job API."""
    options = [
        option
        for option in _START_OPTIONS
        if any(argument.split("=")[0] == option for argument in sys.argv[1:])
    ]
    if os.environ.get("RUNPOD_REALTIME_PORT", "0") not in ("", "0"):
        options.append("RUNPOD_REALTIME_PORT")
    return options


def do_test_job(handler: Handler) -> None:
    """Do the test job. Raises SystemExit: 0 where it succeeded, 1 where it failed.

    With `--rp_serve_api` or RUNPOD_REALTIME_PORT, serve the SDK's own HTTP API for tests instead,
    and return when it has ended.
    """
    runpod.serverless.start({"handler": handler})
