"""The requests that a Router has in work, and its end."""

import asyncio

from deployments.router.in_flight import InFlight


async def test_a_router_without_requests_has_drained_at_once() -> None:
    in_flight = InFlight()
    assert not in_flight.draining
    await in_flight.drain()
    assert in_flight.draining


async def test_every_request_is_waited_for_even_one_that_comes_late_or_fails() -> None:
    in_flight = InFlight()
    first, late = in_flight.request(), in_flight.request()
    first.__enter__()
    drained = asyncio.ensure_future(in_flight.drain())
    await asyncio.sleep(0)
    assert in_flight.draining
    late.__enter__()
    first.__exit__(ValueError, ValueError(), None)
    await asyncio.sleep(0)
    assert not drained.done()
    late.__exit__(None, None, None)
    await drained


async def test_a_request_that_comes_between_the_last_ones_end_and_the_wakeup_counts() -> (
    None
):
    in_flight = InFlight()
    first, next_one = in_flight.request(), in_flight.request()
    first.__enter__()
    drained = asyncio.ensure_future(in_flight.drain())
    await asyncio.sleep(0)
    first.__exit__(None, None, None)
    next_one.__enter__()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not drained.done()
    next_one.__exit__(None, None, None)
    await drained
