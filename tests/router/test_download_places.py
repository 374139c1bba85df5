"""Who may download at the same time, and in which order the others follow."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.contract.errors import OverloadedError
from deployments.router.download_places import DownloadPlaces


class Downloads:
    """Named downloads: each begins when it gets its place, and ends when it is told to."""

    def __init__(self, size: int, max_waiting: int = 1000) -> None:
        self.places = DownloadPlaces(size, max_waiting)
        self.wait_s = 60.0
        self.begun: list[str] = []
        self.told_to_wait: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, *names: str, host: str | None = None, key: str = "-") -> None:
        """host: of all of them; None: each has its own"""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.ensure_future(
                self._download(name, host or name, key)
            )
        await self.settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await self.settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def _download(self, name: str, host: str, key: str) -> None:
        async with self.places.one(
            key, host, lambda: self.told_to_wait.append(name), self.wait_s
        ):
            self.begun.append(name)
            await self._ends[name].wait()


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.fixture
async def downloads() -> AsyncIterator[Downloads]:
    """256 places. After the test everybody leaves, and nothing may be left."""
    downloads = Downloads(256)
    yield downloads
    await downloads.cancel(*downloads.tasks)
    assert (downloads.places.held, downloads.places.waiting) == (0, 0)


async def test_a_host_that_is_alone_gets_many_places_and_never_all(
    downloads: Downloads,
) -> None:
    await downloads.ask(*numbered("slow", 1000), host="slow")
    assert downloads.places.held == 29
    await downloads.ask("good")
    assert downloads.begun[-1] == "good"
    assert "good" not in downloads.told_to_wait


async def test_a_request_overtakes_those_that_wait_for_a_full_host(
    downloads: Downloads,
) -> None:
    await downloads.ask(*numbered("slow", 100), host="slow")
    for _ in range(50):
        await downloads.ask("good")
        await downloads.end("good")
    assert downloads.begun.count("good") == 50
    assert "good" not in downloads.told_to_wait


@pytest.mark.parametrize(("hosts", "urls"), [(32, 4), (20, 40), (2, 200)])
async def test_many_slow_hosts_leave_a_place_for_the_next_host(
    downloads: Downloads, hosts: int, urls: int
) -> None:
    downloads.places.resize(256, 100_000)
    for host in numbered("slow", hosts):
        await downloads.ask(*numbered(f"{host}/", urls), host=host)
    await downloads.ask(*numbered("good", 2))
    assert downloads.begun[-2:] == ["good0", "good1"]


async def test_callers_without_a_key_are_not_one_key(downloads: Downloads) -> None:
    await downloads.ask(*numbered("a", 500))
    assert downloads.places.held == 256


async def test_a_key_with_many_hosts_leaves_places_for_other_keys(
    downloads: Downloads,
) -> None:
    await downloads.ask(*numbered("a", 500), key="greedy")
    assert downloads.places.held == 192
    await downloads.ask(*numbered("b", 500), key="second")
    await downloads.ask("c", key="third")
    assert downloads.begun[-1] == "c"


async def test_free_places_go_to_the_keys_in_turn_and_within_a_key_in_order(
    downloads: Downloads,
) -> None:
    downloads.places.resize(1, 1000)
    await downloads.ask("now")
    await downloads.ask("a1", "a2", "a3", key="a")
    await downloads.ask("b1", "b2", key="b")
    for name in ("now", "a1", "b1", "a2", "b2", "a3"):
        assert downloads.begun[-1] == name
        await downloads.end(name)
    assert downloads.told_to_wait == ["a1", "a2", "a3", "b1", "b2"]


async def test_who_leaves_the_queue_takes_no_place_along(downloads: Downloads) -> None:
    downloads.places.resize(1, 1000)
    await downloads.ask("a", "b", "c")
    await downloads.cancel("b")
    await downloads.end("a")
    assert downloads.begun == ["a", "c"]


async def test_a_place_given_to_one_who_is_just_leaving_goes_to_the_next(
    downloads: Downloads,
) -> None:
    downloads.places.resize(1, 1000)
    await downloads.ask("a", "b", "c")
    downloads.tasks["a"].cancel()
    await asyncio.sleep(0)  # a has left, and b has the place but does not run yet
    await downloads.cancel("b")
    assert downloads.begun == ["a", "c"]


async def test_more_places_are_given_at_once_and_fewer_as_they_become_free(
    downloads: Downloads,
) -> None:
    names = numbered("a", 6)
    downloads.places.resize(2, 1000)
    await downloads.ask(*names, key="a")
    assert downloads.begun == names[:2]
    downloads.places.resize(4, 1000)
    await downloads.settle()
    # The fourth place is for another key.
    assert downloads.begun == names[:3]
    downloads.places.resize(1, 1000)
    await downloads.end("a0", "a1")
    assert downloads.begun == names[:3]
    await downloads.end("a2")
    assert downloads.begun == names[:4]


async def test_one_host_may_fill_most_of_the_queue_and_others_still_may_wait() -> None:
    downloads = Downloads(1, max_waiting=100)
    await downloads.ask("now")
    await downloads.ask(*numbered("slow", 200), host="slow")
    await downloads.ask("good")
    refused = [task for task in downloads.tasks.values() if task.done()]
    assert len(refused) == 200 - 75
    for task in refused:
        with pytest.raises(OverloadedError, match="max_waiting_requests"):
            await task
    assert downloads.told_to_wait[-1] == "good"
    await downloads.cancel(*downloads.tasks)
    assert (downloads.places.held, downloads.places.waiting) == (0, 0)


async def test_where_none_may_wait_the_next_one_is_refused() -> None:
    downloads = Downloads(1, max_waiting=0)
    await downloads.ask("a")
    await downloads.ask("b")
    assert downloads.begun == ["a"]
    with pytest.raises(OverloadedError):
        await downloads.tasks["b"]
    await downloads.end("a")


async def test_the_wait_for_a_place_has_a_limit(downloads: Downloads) -> None:
    downloads.places.resize(1, 1000)
    await downloads.ask("now")
    downloads.wait_s = 0.0
    await downloads.ask("late")
    with pytest.raises(OverloadedError, match="request_timeout_s"):
        await downloads.tasks["late"]
    assert (downloads.places.held, downloads.places.waiting) == (1, 0)
    # A place that is free needs no wait.
    await downloads.end("now")
    await downloads.ask("next")
    assert downloads.begun == ["now", "next"]


@pytest.mark.parametrize(
    "name", ["h{}.evil.test", "h{}.a.b.evil.test", "h{}.EVIL.test"]
)
async def test_many_names_of_one_domain_leave_places_for_others(
    downloads: Downloads, name: str
) -> None:
    downloads.places.resize(256, 1000)
    await downloads.ask(*(name.format(number).lower() for number in range(1000)))
    assert downloads.places.held == 128
    await downloads.ask(*(f"files{number}.good.test" for number in range(30)))
    assert downloads.begun[-1] == "files29.good.test"
    assert not any("good" in name for name in downloads.told_to_wait)


async def test_addresses_are_domains_of_their_own(downloads: Downloads) -> None:
    addresses = [f"1.2.3.{number}" for number in range(200)]
    await downloads.ask(*addresses, *(f"[2001:db8::{n}]" for n in range(56)))
    assert downloads.places.held == 256


async def test_a_download_that_fails_leaves_its_place() -> None:
    places = DownloadPlaces(1, 0)

    async def fail(*_: Any) -> None:
        async with places.one("-", "host", lambda: None, 60.0):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await fail()
    assert places.held == 0
