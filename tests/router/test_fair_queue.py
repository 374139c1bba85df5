"""The order in which requests of several keys get their turns."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from deployments.router.fair_queue import FairQueue


@dataclass(eq=False)
class Item:
    key: str
    seconds: float


def served(queue: FairQueue[Item], count: int) -> list[Item]:
    """The next items, in the order in which they are taken."""
    items = []
    for _ in range(count):
        items.append(queue.heads()[0])
        queue.take(items[-1])
    return items


def filled(*items: Item) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for item in items:
        queue.push(item)
    return queue


def test_one_key_is_served_in_order_whatever_the_lengths() -> None:
    items = [Item("a", seconds) for seconds in (600, 1, 30, 0)]
    assert served(filled(*items), 4) == items


def test_keys_share_the_audio_and_not_the_number_of_requests() -> None:
    queue = filled(
        *(Item("short", 10) for _ in range(60)), *(Item("long", 100) for _ in range(6))
    )
    # While both have something waiting, one long recording comes after ten short ones.
    taken = served(queue, 55)
    assert sum(item.seconds for item in taken if item.key == "short") == 500
    assert sum(item.seconds for item in taken if item.key == "long") == 500


def test_a_key_that_seldom_asks_waits_for_no_more_than_its_own_length() -> None:
    queue = filled(*(Item("flood", 10) for _ in range(1000)))
    served(queue, 100)
    rare = Item("rare", 11)
    queue.push(rare)
    assert rare in served(queue, 3)


def test_a_key_gains_nothing_from_the_time_in_which_it_has_nothing_waiting() -> None:
    queue = filled(*(Item("a", 10) for _ in range(100)))
    served(queue, 90)
    for _ in range(100):
        queue.push(Item("b", 10))
    keys = [item.key for item in served(queue, 20)]
    assert keys.count("a") == keys.count("b") == 10


def test_what_is_removed_is_not_charged_to_its_key() -> None:
    long, short = Item("a", 1000), Item("a", 10)
    queue = filled(long, short, Item("b", 100))
    queue.remove(long)
    assert served(queue, 1) == [short]


def test_an_item_may_be_taken_before_its_turn() -> None:
    long, short, next_one = Item("a", 1000), Item("b", 10), Item("b", 10)
    queue = filled(short, long, next_one)
    served(queue, 1)
    queue.take(long)
    assert served(queue, 1) == [next_one]
    assert len(queue) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 100)), min_size=1),
    st.integers(1, 200),
)
def test_keys_that_wait_all_the_time_differ_by_no_more_than_a_recording(
    given_items: list[tuple[str, float]], count: int
) -> None:
    items = [Item(key, seconds) for key, seconds in given_items]
    queue = filled(*items)
    got = {item.key: 0.0 for item in items}
    waiting = [item.key for item in items]
    taken = []
    for item in served(queue, min(count, len(items))):
        got[item.key] += item.seconds
        waiting.remove(item.key)
        taken.append(item)
        still = {got[key] for key in waiting}
        if still:
            assert max(still) - min(still) <= 100 + 1e-6
    for key in got:
        assert [i for i in taken if i.key == key] == [i for i in items if i.key == key][
            : sum(i.key == key for i in taken)
        ]
