"""The fuzzer's targets in the ordinary tests: its seeds, and random bytes after them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contract.errors import WhisperServeError
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, refused

EACH_TARGET = pytest.mark.parametrize("name", TARGETS)


@EACH_TARGET
def test_the_seeds_are_answered_or_refused(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@EACH_TARGET
@given(data=st.data())
def test_damaged_seeds_are_answered_or_refused(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    place = data.draw(st.integers(0, len(seed)))
    removed = data.draw(st.integers(0, 20))
    TARGETS[name](
        seed[:place] + data.draw(st.binary(max_size=20)) + seed[place + removed :]
    )


def test_an_unforeseen_failure_is_no_right_answer() -> None:
    with pytest.raises(AssertionError), refused():
        raise WhisperServeError("an unforeseen failure")
