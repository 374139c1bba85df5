"""Downloads beside each other: places, room on the disk, and what is left when callers leave."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.audio.spool import Spool
from deployments.config import AppArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import OverloadedError
from deployments.contract.request import parse_request
from deployments.router.audio_source import RemoteAudio, source_of
from deployments.router.fetching import Fetcher
from deployments.router.request_log import caller_key
from tests.support.handles import Handle, events, transcript
from tests.support.misbehaving_server import (
    Connection,
    MisbehavingServer,
    answer_with,
    endless,
    raw,
)
from tests.support.routers import RECORDING, router

KIB, MIB = 1 << 10, 1 << 20
FILE = b"recording" * 1000


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


class SlowHost(MisbehavingServer):
    """Takes requests and answers none before it is told to, then each with `FILE`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.answer(self._late)

    def _late(self, connection: Connection) -> None:
        connection.request()
        while connection.open and not self.may_answer.wait(0.01):
            pass
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(FILE)}\r\n\r\n"
        connection.send(head.encode() + FILE)


@pytest.fixture
def slow_host() -> Iterator[SlowHost]:
    with SlowHost() as server:
        yield server


class Service:
    """A Fetcher, and its requests."""

    def __init__(self, **args: Any) -> None:
        # Whoever refuses private addresses has to let these servers be.
        self.args = AppArgs(allow_private_networks=True, **args)
        self.spool = Spool(self.args.max_spool_bytes)
        self.fetcher = Fetcher(self.args, self.spool)
        self._requests: list[asyncio.Task[bytes]] = []

    def request(
        self, url: str, stages: list[Stage] | None = None, key: str = "-"
    ) -> "asyncio.Task[bytes]":
        on_stage = (stages if stages is not None else []).append

        async def fetch() -> bytes:
            caller_key.set(key)
            async with self.fetcher.fetched(RemoteAudio(url, {}), on_stage) as fetched:
                return fetched.file.read()

        task = asyncio.ensure_future(fetch())
        self._requests.append(task)
        return task

    async def cancel_all(self) -> None:
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def holds_nothing(self) -> bool:
        held = (self.fetcher.in_progress, self.fetcher.waiting, self.spool.held)
        return held == (0, 0, 0)


@asynccontextmanager
async def service(**args: Any) -> AsyncIterator[Service]:
    """All requests end with the block, and nothing may be left of them."""
    served = Service(**args)
    try:
        yield served
    finally:
        await served.cancel_all()
        assert served.holds_nothing()
        assert not [t for t in threading.enumerate() if t.name == "fetch"]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def on_another_host(server: MisbehavingServer) -> str:
    """A URL of the server whose host is not that of `server.url()`."""
    return server.url().replace("127.0.0.1", "localhost")


async def test_many_slow_urls_of_one_host_hold_up_no_other_host(
    slow_host: SlowHost, server: MisbehavingServer
) -> None:
    server.answer(answer_with(body=FILE))
    async with service(max_downloads=16) as served:
        slow = [served.request(slow_host.url()) for _ in range(50)]
        await until(lambda: slow_host.requests)
        stages: list[Stage] = []
        assert await served.request(on_another_host(server), stages) == FILE
        assert stages == [Stage(stage="downloading")]
        assert served.fetcher.in_progress < 16
        assert not any(task.done() for task in slow)
        slow_host.may_answer.set()
        assert await asyncio.gather(*slow) == [FILE] * 50


async def test_slow_hosts_keep_no_model_from_working(slow_host: SlowHost) -> None:
    handle = Handle(stream=[events(transcript("hello"))])
    routed = router(handle, max_requests_per_model=1, allow_private_networks=True)
    request = {"audio": slow_host.url()}
    slow = [asyncio.ensure_future(routed.answer(request)) for _ in range(5)]
    await until(lambda: len(slow_host.requests) == 5)
    answer = await routed.answer(RECORDING)
    assert answer.transcription == "hello"
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert routed.spool.held == 0


async def test_ports_of_one_host_are_one_host(
    slow_host: SlowHost, server: MisbehavingServer
) -> None:
    server.answer(answer_with(body=FILE))
    async with service(max_downloads=2) as served:
        served.request(slow_host.url())
        other_port = served.request(server.url().upper().replace("HTTP:", "http:"))
        await until(lambda: served.fetcher.waiting)
        slow_host.may_answer.set()
        assert await other_port == FILE


async def test_a_download_that_waits_says_so_and_counts_its_wait_apart(
    slow_host: SlowHost,
) -> None:
    async with service(max_downloads=1) as served:
        served.request(slow_host.url())
        stages: list[Stage] = []
        waiting = served.request(slow_host.url(), stages)
        await until(lambda: stages)
        assert stages == [Stage(stage="queued")]
        slow_host.may_answer.set()
        await waiting
        assert stages == [Stage(stage="queued"), Stage(stage="downloading")]
        source = RemoteAudio(slow_host.url(), {})
        async with served.fetcher.fetched(source) as fetched:
            assert fetched.remote and fetched.waited_s < fetched.download_s


async def test_a_download_waits_for_its_place_no_longer_than_a_request_may(
    slow_host: SlowHost,
) -> None:
    async with service(max_downloads=1, request_timeout_s=0.1) as served:
        served.request(slow_host.url())
        await until(lambda: slow_host.requests)
        with pytest.raises(OverloadedError, match="request_timeout_s"):
            await served.request(slow_host.url())
        assert (served.fetcher.in_progress, served.fetcher.waiting) == (1, 0)


async def test_a_slow_key_holds_up_no_other_key(
    slow_host: SlowHost, server: MisbehavingServer
) -> None:
    server.answer(answer_with(body=FILE))
    async with service(max_downloads=4) as served:
        # The hosts do not exist as hosts of their own, but have names of their own.
        for number in range(10):
            url = slow_host.url().replace("127.0.0.1", f"127.0.0.{number + 2}")
            served.request(url, key="slow")
        await until(lambda: served.fetcher.waiting)
        assert await served.request(on_another_host(server), key="good") == FILE


async def test_who_leaves_while_waiting_or_downloading_leaves_nothing(
    slow_host: SlowHost,
) -> None:
    async with service(max_downloads=2) as served:
        tasks = [served.request(slow_host.url()) for _ in range(4)]
        await until(lambda: slow_host.requests and served.fetcher.waiting)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert (served.fetcher.in_progress, served.fetcher.waiting) == (1, 0)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert served.holds_nothing()


async def test_a_download_in_the_middle_of_its_body_ends_with_its_caller(
    server: MisbehavingServer,
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"
    server.answer(endless(head, b"x" * 100, every_s=0.01))
    async with service() as served:
        task = served.request(server.url())
        await until(lambda: served.spool.held >= MIB)
        await until(lambda: server.requests)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() and served.holds_nothing()


async def test_a_download_waits_until_there_is_room_for_it(
    server: MisbehavingServer,
) -> None:
    server.answer(answer_with(body=FILE))
    async with service(max_spool_bytes=2 * MIB) as served:
        stages: list[Stage] = []
        with served.spool.share("-") as upload:
            upload.received(2 * MIB)
            task = served.request(server.url(), stages)
            await until(lambda: stages)
            assert stages == [Stage(stage="queued")]
            assert not server.requests
        assert await task == FILE
        assert stages[-1] == Stage(stage="downloading")


async def test_a_download_that_turns_out_to_be_large_waits_and_is_fetched_then(
    server: MisbehavingServer,
) -> None:
    large = bytes(3 * MIB)
    server.answer(answer_with(body=large))
    async with service(max_spool_bytes=4 * MIB) as served:
        stages: list[Stage] = []
        with served.spool.share("-") as upload:
            upload.received(2 * MIB)
            task = served.request(server.url(), stages)
            await until(lambda: len(stages) == 2)
            # While it waits it holds nothing.
            await until(lambda: served.spool.held == 2 * MIB)
        assert await task == large
        assert [stage.stage for stage in stages] == [
            "downloading",
            "queued",
            "downloading",
        ]
        assert len(server.requests) == 2


async def test_a_download_of_unknown_size_ends_where_room_runs_out(
    server: MisbehavingServer,
) -> None:
    server.answer(raw(b"HTTP/1.1 200 OK\r\n\r\n", bytes(3 * MIB)))
    async with service(max_spool_bytes=4 * MIB) as served:
        with served.spool.share("-") as upload:
            upload.received(2 * MIB)
            with pytest.raises(OverloadedError, match="max_spool_bytes"):
                await served.request(server.url())
            assert served.spool.held == 2 * MIB


async def test_room_that_does_not_come_in_time_is_told_as_such(
    server: MisbehavingServer,
) -> None:
    async with service(max_spool_bytes=MIB, download_timeout_s=0.1) as served:
        with served.spool.share("-") as upload:
            upload.received(MIB)
            with pytest.raises(OverloadedError, match="max_spool_bytes"):
                await served.request(server.url())
    assert not server.requests


async def test_two_large_downloads_come_one_after_the_other(
    server: MisbehavingServer,
) -> None:
    large = bytes(3 * MIB)
    server.answer(answer_with(body=large))
    async with service(max_spool_bytes=4 * MIB) as served:
        tasks = [served.request(server.url()) for _ in range(4)]
        assert await asyncio.gather(*tasks) == [large] * 4


async def test_a_disk_without_room_for_the_announced_size_is_told_at_once(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_frsize=1, f_blocks=1 << 40, f_bavail=260 * MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    server.answer(answer_with(length=5 * MIB))
    async with service() as served:
        with pytest.raises(OverloadedError, match="disk has no room") as caught:
            await served.request(server.url())
        assert caught.value.retry_after_s
        assert served.spool.no_room == {"max_spool_bytes": 0, "disk": 1}


def test_base64_that_the_spool_has_no_room_for_is_refused() -> None:
    request = parse_request({"audio_base64": "QUJD" * 1000})
    spool = Spool(KIB)
    with pytest.raises(OverloadedError, match="max_spool_bytes"):
        source_of(request, None, spool)
    assert spool.held == 0
    file = source_of(request, None, Spool(3000))
    assert not isinstance(file, RemoteAudio)
    with file:
        assert file.read() == b"ABC" * 1000


async def test_other_limits_hold_for_those_who_wait_already(
    slow_host: SlowHost,
) -> None:
    async with service(max_downloads=1) as served:
        for _ in range(3):
            served.request(slow_host.url())
        await until(lambda: slow_host.requests)
        assert served.fetcher.in_progress == 1
        served.fetcher.set_limits(served.args.with_limits({"max_downloads": 128}))
        await until(lambda: len(slow_host.requests) == 3)
