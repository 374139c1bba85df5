"""Requests that wait for a replica with room."""

import asyncio

from deployments.router.dispatch_queue import DispatchQueue


class Requests:
    """Named requests in a queue: each stays at the head until it is dispatched."""

    def __init__(self, queue: DispatchQueue) -> None:
        self.queue = queue
        self.at_head: list[str] = []
        self.windows_ahead: dict[str, list[int]] = {}
        self.dispatched: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, *names: str) -> None:
        for name in names:
            self.windows_ahead[name] = []
            self.dispatched[name] = asyncio.Event()
            self.tasks[name] = asyncio.ensure_future(self._wait(name))
            await settle()

    async def _wait(self, name: str) -> None:
        async with self.queue.head(self.windows_ahead[name].append):
            self.at_head.append(name)
            await self.dispatched[name].wait()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_requests_come_to_the_head_in_order_one_at_a_time() -> None:
    requests = Requests(DispatchQueue())
    await requests.arrive("a", "b", "c")
    assert requests.at_head == ["a"]
    requests.dispatched["b"].set()
    await settle()
    assert requests.at_head == ["a"]
    requests.dispatched["a"].set()
    await settle()
    assert requests.at_head == ["a", "b", "c"]
    requests.dispatched["c"].set()
    await asyncio.gather(*requests.tasks.values())


async def test_the_number_of_windows_ahead_is_reported_when_it_changes() -> None:
    queue = DispatchQueue()
    requests = Requests(queue)
    await requests.arrive("a", "b")
    queue.replicas_full(4)
    queue.replicas_full(4)
    await requests.arrive("c")
    queue.replicas_full(4)
    queue.replicas_full(2)
    assert requests.windows_ahead == {"a": [4, 2], "b": [5, 3], "c": [6, 4]}
    for dispatched in requests.dispatched.values():
        dispatched.set()
    await asyncio.gather(*requests.tasks.values())


async def test_a_request_that_leaves_is_no_longer_ahead_of_others() -> None:
    queue = DispatchQueue()
    requests = Requests(queue)
    await requests.arrive("a", "b", "c")
    for name in ("b", "a"):
        requests.tasks[name].cancel()
    await settle()
    assert requests.at_head == ["a", "c"]
    queue.replicas_full(1)
    assert requests.windows_ahead == {"a": [], "b": [], "c": [1]}
    requests.dispatched["c"].set()
    await requests.tasks["c"]
