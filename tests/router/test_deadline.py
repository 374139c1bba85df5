"""The limit of a request's time with a replica."""

import asyncio
from types import SimpleNamespace

import pytest

from deployments.contract.errors import RequestTimeoutError
from deployments.router import deadline
from deployments.router.deadline import Deadline


async def test_work_within_the_limit_goes_through() -> None:
    limit = Deadline(60.0)
    for _ in range(3):
        async with limit.running():
            await asyncio.sleep(0)


async def test_work_beyond_the_limit_ends_with_an_error_that_names_the_option() -> None:
    with pytest.raises(
        RequestTimeoutError, match=r"limit of 0\.01 s \(request_timeout_s\)"
    ):
        async with Deadline(0.01).running():
            await asyncio.Event().wait()


async def test_the_times_of_all_blocks_count_together_and_those_between_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now))
    limit = Deadline(1000.0)
    for inside in (500.0, 501.0):
        now += 2000.0
        async with limit.running():
            await asyncio.sleep(0)
            now += inside
    with pytest.raises(RequestTimeoutError):
        async with limit.running():
            await asyncio.Event().wait()


async def test_a_timeout_of_the_works_own_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError, match="^of the replica$"):
        async with Deadline(60.0).running():
            raise TimeoutError("of the replica")
