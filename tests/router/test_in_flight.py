"""The requests that a Router has in work, and its end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from deployments.contract.errors import ServiceUnavailableError
from deployments.router.in_flight import InFlight

LONG_S = 1000.0


async def endless(cancelled: list[str]) -> AsyncGenerator[int, None]:
    yield 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.append("cancelled")
        raise


async def test_a_router_accepts_requests_until_its_drain_begins() -> None:
    in_flight = InFlight()
    in_flight.check_accepting()
    assert in_flight.drain(LONG_S).in_work == 0
    with pytest.raises(ServiceUnavailableError, match="takes no new requests"):
        in_flight.check_accepting()


async def test_requests_in_work_count_until_they_end_even_by_an_error() -> None:
    in_flight = InFlight()
    with in_flight.request():
        with suppress(ValueError), in_flight.request():
            assert in_flight.drain(LONG_S).in_work == 2
            raise ValueError
        assert in_flight.drain(LONG_S).in_work == 1
    assert in_flight.drain(LONG_S).in_work == 0


async def test_a_drain_that_has_begun_keeps_its_limit() -> None:
    in_flight = InFlight()
    in_flight.drain(LONG_S)
    assert in_flight.drain(2 * LONG_S).left_s <= LONG_S
    assert not in_flight.ended


async def test_after_the_limit_what_is_in_work_ends_with_an_error_and_is_cancelled() -> (
    None
):
    in_flight, cancelled, had = InFlight(), list[str](), list[int]()
    with pytest.raises(ServiceUnavailableError, match="drain_timeout_s"):
        async for event in in_flight.until_ended(endless(cancelled)):
            had.append(event)
            in_flight.drain(0)
    assert (had, cancelled) == ([1], ["cancelled"])
    # And so does what begins to wait later.
    with pytest.raises(ServiceUnavailableError):
        async with in_flight.interruptible():
            await asyncio.Event().wait()


async def test_a_timeout_of_the_request_itself_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        async with InFlight().interruptible():
            raise TimeoutError
