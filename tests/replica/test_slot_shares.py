"""How requests with chunks divide the slots of an engine."""

import threading
import time
from contextlib import ExitStack

import pytest

from deployments.replica.slot_shares import Share, SlotShares
from tests.support.engine.calls import until


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("slots", "whole", "chunked", "most"),
    [
        # A quarter stays free for requests to come.
        (8, 0, 1, 6),
        (32, 0, 1, 24),
        (32, 0, 3, 8),
        # Requests of one window at a time come first.
        (8, 4, 1, 2),
        (8, 4, 2, 1),
        (32, 8, 2, 8),
        # Nobody stands still.
        (8, 8, 1, 1),
        (8, 50, 20, 1),
        (1, 0, 1, 1),
    ],
)
def test_requests_with_chunks_divide_what_the_others_leave(
    slots: int, whole: int, chunked: int, most: int
) -> None:
    shares = SlotShares()
    with ExitStack() as stack:
        for _ in range(whole):
            stack.enter_context(shares.whole())
        for _ in range(chunked):
            stack.enter_context(shares.chunked(slots))
        assert shares.most(slots) == most
    assert shares.most(8) == 6


def test_a_chunk_waits_for_its_requests_share() -> None:
    shares = SlotShares()
    with shares.chunked(4) as share:
        for _ in range(3):
            assert share.take(never)
        waiter = Waiter(share)
        time.sleep(0.05)
        assert not waiter.taken
        share.give_back()
        until(lambda: waiter.taken == [True])


def test_the_share_grows_when_another_request_ends() -> None:
    shares = SlotShares()
    with shares.chunked(4) as share:
        with shares.whole(), shares.whole():
            assert share.take(never)
            waiter = Waiter(share)
            time.sleep(0.05)
            assert not waiter.taken
        until(lambda: waiter.taken == [True])


def test_who_waits_leaves_when_the_request_is_over() -> None:
    over = threading.Event()
    with SlotShares().chunked(1) as share:
        assert share.take(never)
        waiter = Waiter(share, over)
        over.set()
        until(lambda: waiter.taken == [False])
    assert not share.take(lambda: True)


class Waiter:
    """A thread that asks for a place, and what it was told."""

    def __init__(self, share: Share, over: threading.Event | None = None) -> None:
        self.taken: list[bool] = []
        over = over or threading.Event()
        self._thread = threading.Thread(
            target=lambda: self.taken.append(share.take(over.is_set)), daemon=True
        )
        self._thread.start()
