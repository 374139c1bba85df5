import logging

import pytest

from deployments.runpod.outage_log import Backoff, OutageLog


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=0.5, longest_s=10)
    pauses = [backoff.pause_after(failures) for failures in (1, 2, 3, 4, 5, 6, 10_000)]
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]


def test_an_outage_is_logged_at_its_beginning_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = OutageLog("job-take")
    outage.answered()
    for _ in range(100):
        outage.failed("HTTP_500")
    outage.answered()
    outage.answered()
    assert caplog.messages == [
        "event=job_api_unreachable call=job-take failures=1 error=HTTP_500",
        "event=job_api_recovered call=job-take failures=100",
    ]


def test_a_long_outage_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    outage = OutageLog("ping", reminder_s=0)
    for _ in range(3):
        outage.failed("ConnectionError")
    assert len(caplog.messages) == 3
    assert "failures=3" in caplog.messages[-1]


def test_a_failure_tells_how_long_to_wait() -> None:
    outage = OutageLog("ping", Backoff(first_s=1))
    assert [outage.failed("x") for _ in range(3)] == [1, 2, 4]
    outage.answered()
    assert outage.failed("x") == 1
