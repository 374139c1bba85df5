"""The bytes that all files hold together as they came, and the disk below them."""

import asyncio
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from deployments.audio.spool import Share, Spool, SpoolFullError
from deployments.contract.errors import OverloadedError

MIB = 1 << 20
FreeBytes = Callable[[int], None]


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> FreeBytes:
    """Sets how many bytes the disk has free, of 100 GiB."""

    def set_free(free: int) -> None:
        disk = SimpleNamespace(f_frsize=1, f_blocks=100 << 30, f_bavail=free)
        monkeypatch.setattr(os, "statvfs", lambda _: disk)

    return set_free


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_share_grows_and_is_given_back_at_its_end() -> None:
    spool = Spool(4)
    with spool.share("-") as share:
        share.reserve(3)
        share.received(2)
        assert spool.held == 3
        share.received(4)
        assert spool.held == 4
    assert spool.held == 0


def test_what_has_no_room_is_refused_and_changes_nothing() -> None:
    spool = Spool(4)
    with spool.share("-") as first, spool.share("-") as second:
        first.reserve(3)
        for ask in (second.reserve, second.check):
            with pytest.raises(SpoolFullError, match="max_spool_bytes") as caught:
                ask(2)
            assert caught.value.size == 2
        with pytest.raises(OverloadedError, match="max_spool_bytes"):
            second.received(2)
        assert spool.held == 3


def test_what_is_only_checked_holds_nothing() -> None:
    spool = Spool(4)
    with spool.share("-") as first, spool.share("-") as second:
        first.check(4)
        second.check(4)
        assert spool.held == 0


def test_a_share_that_was_released_takes_nothing_any_more() -> None:
    spool = Spool(MIB)
    file = spool.file("-")
    file.write(b"a" * 1000)
    # As when a caller leaves while a thread still writes.
    file.share.release()
    with pytest.raises(ValueError, match="released"):
        file.write(b"b" * 1000)
    with pytest.raises(ValueError, match="released"):
        file.share.reserve(1)
    assert spool.held == 0
    file.close()


def test_one_share_may_be_counted_by_two_threads() -> None:
    spool = Spool(MIB)
    with spool.share("-") as share, ThreadPoolExecutor(2) as threads:
        count = range(1, 5000)
        for _ in threads.map(
            lambda step: [*map(share.received, count[::step])], (1, 3)
        ):
            pass
        assert spool.held == share.size == 4999


def test_a_share_may_be_released_before_its_end() -> None:
    spool = Spool(4)
    with spool.share("-") as share:
        share.reserve(3)
        share.release()
        share.release()
        assert spool.held == 0
    assert spool.held == 0


def test_that_there_is_no_room_can_be_told_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(SpoolFullError("try again later", 7)))
    assert (str(error), error.size, error.status) == ("try again later", 7, 503)


def test_a_file_counts_what_is_written_to_it_until_it_is_closed() -> None:
    spool = Spool(MIB)
    with spool.file("-") as file:
        file.writelines([b"a" * 1000, b"b" * 24])
        assert spool.held == 1024
        file.seek(0)
        file.write(b"c" * 1000)
        assert spool.held == 1024
        with pytest.raises(OverloadedError):
            file.write(bytes(2 * MIB))
    assert spool.held == 0


def test_what_the_disk_has_no_room_for_is_refused(free_bytes: FreeBytes) -> None:
    spool = Spool(100 * MIB)
    with spool.share("-") as share, spool.share("-") as other:
        free_bytes(256 * MIB + 10 * MIB)
        share.reserve(6 * MIB)
        # Of what is free, six are spoken for.
        with pytest.raises(OverloadedError, match="disk has no room"):
            other.reserve(5 * MIB)
        other.reserve(4 * MIB)
        # Those six have come: the disk has fewer free, and none is spoken for twice.
        share.received(6 * MIB)
        free_bytes(256 * MIB + 4 * MIB)
        other.received(4 * MIB)
        assert spool.held == 10 * MIB


def test_a_disk_that_others_fill_ends_a_file_that_was_announced(
    free_bytes: FreeBytes,
) -> None:
    spool = Spool(100 * MIB)
    with spool.share("-") as share:
        free_bytes(1 << 30)
        share.reserve(64 * MIB)
        share.received(20 * MIB)
        free_bytes(100 * MIB)
        with pytest.raises(OverloadedError, match="disk has no room"):
            for size in range(20 * MIB, 64 * MIB, MIB):
                share.received(size)
    assert spool.held == 0


def test_of_a_small_disk_a_tenth_is_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(f_frsize=1, f_blocks=100 * MIB, f_bavail=50 * MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with Spool(100 * MIB).share("-") as share:
        share.reserve(40 * MIB)
        with pytest.raises(OverloadedError):
            share.reserve(41 * MIB)


def test_a_disk_smaller_than_the_spool_is_logged(
    free_bytes: FreeBytes, caplog: pytest.LogCaptureFixture
) -> None:
    free_bytes(1 << 30)
    Spool(512 * MIB).log_if_disk_is_smaller()
    assert caplog.text == ""
    Spool(2 << 30).log_if_disk_is_smaller()
    assert (
        "event=disk_smaller_than_spool max_spool_bytes=2147483648"
        " usable_bytes=805306368" in caplog.text
    )


async def test_a_large_file_is_passed_by_small_ones_of_no_more_bytes_than_it_has() -> (
    None
):
    spool = Spool(10)
    first = await spool.room(7, "-")
    large = asyncio.ensure_future(spool.room(5, "-"))
    small = [asyncio.ensure_future(spool.room(1, "-")) for _ in range(9)]
    for number in range(5):
        await settle()
        # Each that ends makes room for the next one, until the large one has been passed by five.
        assert sum(task.done() for task in small) == min(3 + number, 5)
        (await small[number]).release()
    await settle()
    assert sum(task.done() for task in small) == 5
    assert not large.done()
    first.release()
    assert (await large).size == 5


async def test_who_waits_for_room_gets_it_in_order_of_arrival() -> None:
    spool = Spool(10)
    first = await spool.room(8, "-")
    order: list[int] = []

    async def wait(size: int) -> Share:
        share = await spool.room(size, key=f"key {size}")
        order.append(size)
        return share

    waiting = [asyncio.ensure_future(wait(size)) for size in (9, 3, 4)]
    await settle()
    assert order == []
    first.release()
    await settle()
    assert order == [9]
    (await waiting[0]).release()
    assert [(await share).size for share in waiting[1:]] == [3, 4]
    assert (order, spool.held) == ([9, 3, 4], 7)


async def test_a_key_that_holds_much_leaves_room_for_other_keys() -> None:
    spool = Spool(100)
    files = [await spool.room(15, "greedy") for _ in range(5)]
    waiting = asyncio.ensure_future(spool.room(15, "greedy"))
    with spool.share("greedy") as upload, pytest.raises(SpoolFullError):
        upload.reserve(1)
    # Whoever has no other file is not bound by that, and overtakes.
    with spool.share("other") as upload:
        upload.reserve(24)
        assert (await spool.room(1, "third")).size == 1
        assert not waiting.done()
    for file in files[:2]:
        file.release()
    assert (await waiting).size == 15


def test_one_file_alone_may_fill_the_spool() -> None:
    with Spool(100).share("-") as share:
        for size in (10, 90, 100):
            share.received(size)


async def test_room_that_is_released_in_a_thread_goes_to_who_waits() -> None:
    spool = Spool(10)
    first = await spool.room(10, "-")
    waiting = asyncio.ensure_future(spool.room(10, "-"))
    await settle()
    await asyncio.to_thread(first.release)
    assert (await waiting).size == 10


async def test_who_leaves_while_waiting_holds_nothing_up() -> None:
    spool = Spool(10)
    first = await spool.room(10, "-")
    large = asyncio.ensure_future(spool.room(10, "-"))
    small = asyncio.ensure_future(spool.room(1, "-"))
    just_leaving = asyncio.ensure_future(spool.room(3, "-"))
    await settle()
    large.cancel()
    await settle()
    first.release()  # small and just_leaving have room, but do not run yet
    just_leaving.cancel()
    assert (await small).size == 1
    await settle()
    assert just_leaving.cancelled() and spool.held == 1


async def test_room_on_a_disk_without_room_is_refused_and_not_waited_for(
    free_bytes: FreeBytes,
) -> None:
    spool = Spool(100 * MIB)
    free_bytes(256 * MIB + 5 * MIB)
    share = await spool.room(5 * MIB, "-")
    with pytest.raises(OverloadedError, match="disk has no room"):
        await spool.room(1, "-")
    assert spool.held == share.size


async def test_a_larger_spool_lets_in_who_waits() -> None:
    spool = Spool(1)
    waiting = asyncio.ensure_future(spool.room(2, "-"))
    await settle()
    spool.resize(2)
    assert (await waiting).size == 2
