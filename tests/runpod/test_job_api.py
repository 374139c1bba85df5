"""How long a result is posted; the rest of the way is in test_loop.py."""

import pytest

from deployments.runpod.job_api import JobApi
from tests.support.job_api import JobApi as JobApiStandIn


async def test_a_result_that_nobody_takes_in_time_is_lost_and_logged(
    api: JobApi, stand_in: JobApiStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.refuse = lambda post: (500, "later")
    await api.deliver({"id": "job"}, {"transcription": "x"})
    tries = len(stand_in.of("job"))
    assert tries >= 1
    assert f"event=result_lost job=job bytes=34 tries={tries} error=HTTP_500" in (
        caplog.text
    )


async def test_an_error_is_posted_as_one(api: JobApi, stand_in: JobApiStandIn) -> None:
    await api.deliver({"id": "job"}, {"error": "of the job"})
    await api.deliver({"id": "other"}, {"transcription": "x"})
    assert stand_in.results("job") == [{"error": "of the job"}]
    assert stand_in.results("other") == [{"output": {"transcription": "x"}}]


async def test_an_error_that_is_refused_is_not_replaced(
    api: JobApi, stand_in: JobApiStandIn
) -> None:
    stand_in.refuse = lambda post: (400, "no")
    await api.deliver({"id": "job"}, {"error": "of the job"})
    assert len(stand_in.of("job")) == 1
