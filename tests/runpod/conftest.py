from collections.abc import AsyncIterator

import pytest
from runpod.serverless.modules import rp_job

from deployments.runpod import sdk
from deployments.runpod.job_api import JobApi, Patience
from deployments.runpod.outage_log import Backoff
from tests.support.job_api import JobApi as JobApiStandIn


@pytest.fixture
async def stand_in(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobApiStandIn]:
    with JobApiStandIn() as stand_in:
        base = f"{stand_in.url}/v2/endpoint"
        monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{base}/job-take/pod?gpu=G")
        monkeypatch.setattr(sdk, "JOB_DONE_URL", f"{base}/job-done/pod/$ID?gpu=G")
        monkeypatch.setattr(sdk, "JOB_STREAM_URL", f"{base}/job-stream/pod/$ID?gpu=G")
        yield stand_in


@pytest.fixture
async def api(stand_in: JobApiStandIn) -> AsyncIterator[JobApi]:
    """A client of the stand-in, with short pauses."""
    async with sdk.AsyncClientSession() as session:
        backoff = Backoff(first_s=0.01, longest_s=0.01)
        yield JobApi(session, Patience(backoff, result_s=0.1))
