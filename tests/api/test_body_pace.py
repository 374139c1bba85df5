"""How fast a body has to come, on a clock of the test's own."""

import asyncio

import pytest

from deployments.api.body_pace import BodyPace
from deployments.config import AppArgs
from deployments.contract.errors import RequestTimeoutError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def come(pace: BodyPace, clock: Clock, n_bytes: int, after_s: float) -> None:
    async with pace.wait():
        clock.now_s += after_s
    pace.received(n_bytes)


async def test_a_body_that_drips_is_given_up() -> None:
    clock = Clock()
    pace = BodyPace(AppArgs(), clock)
    await come(pace, clock, 1, 29.0)
    with pytest.raises(RequestTimeoutError) as caught:
        await come(pace, clock, 1, 29.0)
    assert str(caught.value) == (
        "The request body comes too slowly: less than 1 KiB a second over 31 s"
        " (min_bytes_per_s)"
    )


async def test_a_body_that_comes_fast_enough_is_taken() -> None:
    clock = Clock()
    pace = BodyPace(AppArgs(), clock)
    for _ in range(100):
        await come(pace, clock, 31 << 10, 29.0)


async def test_time_in_which_nobody_waits_for_the_caller_is_no_slowness() -> None:
    clock = Clock()
    pace = BodyPace(AppArgs(), clock)
    for _ in range(100):
        clock.now_s += 20.0
        await come(pace, clock, 100, 0.01)


async def test_without_a_minimum_a_body_may_drip_until_its_time_has_run_out() -> None:
    clock = Clock()
    pace = BodyPace(AppArgs(min_bytes_per_s=0, request_timeout_s=120), clock)
    for _ in range(4):
        await come(pace, clock, 1, 29.0)
    clock.now_s = 120.0
    with pytest.raises(RequestTimeoutError, match="within 120 s .request_timeout_s"):
        async with pace.wait():
            await asyncio.Event().wait()
