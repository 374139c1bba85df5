"""The bytes that all request bodies hold together."""

import pytest

from deployments.api.budget import Budget
from deployments.contract.errors import OverloadedError


def test_a_share_grows_and_is_given_back_at_its_end() -> None:
    budget = Budget()
    with budget.share() as share:
        share.hold(3, limit=4)
        share.hold(2, limit=4)
        assert budget.held == 3
        share.hold(4, limit=4)
        assert budget.held == 4
    assert budget.held == 0


def test_what_has_no_room_is_refused_and_changes_nothing() -> None:
    budget = Budget()
    with budget.share() as first, budget.share() as second:
        first.hold(3, limit=4)
        with pytest.raises(OverloadedError, match="max_spool_bytes"):
            second.hold(2, limit=4)
        assert budget.held == 3


def test_a_share_may_be_released_before_its_end() -> None:
    budget = Budget()
    with budget.share() as share:
        share.hold(3, limit=4)
        share.release()
        share.release()
        assert budget.held == 0
    assert budget.held == 0
