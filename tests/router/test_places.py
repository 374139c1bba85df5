"""Places that requests hold, given in order of arrival."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.router.places import Places


class Holders:
    """Named holders of places: they enter in order, and leave when they are told to."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.inside: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.leaving: dict[str, asyncio.Event] = {}

    async def enter(self, *names: str) -> None:
        for name in names:
            self.leaving[name] = asyncio.Event()
            self._tasks[name] = asyncio.ensure_future(self._hold(name))
            await self.settle()

    async def leave(self, name: str) -> None:
        self.leaving[name].set()
        await self.settle()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _hold(self, name: str) -> None:
        async with self.places.one():
            self.inside.append(name)
            try:
                await self.leaving[name].wait()
            finally:
                self.inside.remove(name)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def holders() -> AsyncIterator[Holders]:
    held = Holders(Places(2))
    yield held
    await held.end()
    assert (held.places.held, held.places.waiting) == (0, 0)


async def test_places_are_given_in_order_of_arrival(holders: Holders) -> None:
    await holders.enter("a", "b", "c", "d")
    assert holders.inside == ["a", "b"]
    assert (holders.places.held, holders.places.waiting) == (2, 2)
    await holders.leave("b")
    assert holders.inside == ["a", "c"]
    await holders.leave("a")
    assert holders.inside == ["c", "d"]


async def test_who_leaves_the_queue_takes_no_place_along(holders: Holders) -> None:
    await holders.enter("a", "b", "c", "d")
    holders.cancel("c")
    await holders.leave("a")
    assert holders.inside == ["b", "d"]


async def test_a_place_given_to_one_who_is_just_leaving_goes_to_the_next(
    holders: Holders,
) -> None:
    await holders.enter("a", "b", "c", "d")
    holders.leaving["a"].set()
    await asyncio.sleep(0)  # a has left, and c has the place but does not run yet
    holders.cancel("c")
    await holders.settle()
    assert holders.inside == ["b", "d"]


async def test_more_places_are_given_at_once_and_fewer_as_they_become_free(
    holders: Holders,
) -> None:
    await holders.enter("a", "b", "c", "d", "e")
    holders.places.resize(4)
    await holders.settle()
    assert holders.inside == ["a", "b", "c", "d"]
    holders.places.resize(3)
    await holders.leave("a")
    assert holders.inside == ["b", "c", "d"]
    await holders.leave("b")
    assert holders.inside == ["c", "d", "e"]


async def test_a_failing_holder_leaves_its_place() -> None:
    places = Places(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with places.one():
                raise ZeroDivisionError
    assert places.held == 0
