"""How long a result is posted; the rest of the way is in test_loop.py."""

import math

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


@pytest.mark.parametrize(
    ("result", "posts"), [({"error": "of the job"}, 1), ({"transcription": "x"}, 2)]
)
async def test_an_error_that_is_refused_is_lost_and_logged(
    api: JobApi,
    stand_in: JobApiStandIn,
    caplog: pytest.LogCaptureFixture,
    result: dict[str, str],
    posts: int,
) -> None:
    stand_in.refuse = lambda post: (400, "no")
    await api.deliver({"id": "job"}, result)
    assert len(stand_in.of("job")) == posts
    assert caplog.text.count("event=result_refused job=job") == 1
    assert caplog.text.count("event=result_lost job=job") == 1
    assert caplog.text.count("error=HTTP_400") == 1


@pytest.mark.parametrize("value", [math.nan, "a lone surrogate: \udc80"])
async def test_for_a_result_that_is_no_json_the_job_gets_an_error(
    api: JobApi,
    stand_in: JobApiStandIn,
    caplog: pytest.LogCaptureFixture,
    value: object,
) -> None:
    await api.deliver({"id": "job"}, {"duration": value})
    assert stand_in.results("job") == [
        {"error": "Internal error; the worker's log names it"}
    ]
    assert "event=result_invalid job=job error=" in caplog.text


async def test_a_job_whose_id_fits_no_request_loses_its_result_at_once(
    api: JobApi, caplog: pytest.LogCaptureFixture
) -> None:
    await api.deliver({"id": "two\nlines"}, {"transcription": "x"})
    assert "event=result_lost job=" in caplog.text
    assert "bytes=34 tries=1 error=" in caplog.text
