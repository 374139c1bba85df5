"""What waits for a drain: progress, routers that die, requests that hang. No Ray cluster."""

from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments import drain as module
from deployments.drain import drain
from deployments.router.in_flight import DrainState

LEFT_S = 100.0


class Handle:
    """Answers each question with the next answers of its routers, and at the end the last ones."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers = list(answers)

    def broadcast(self, method: str) -> "Handle":
        assert method == "drain"
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s > 0 and return_exceptions
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_CHANGE_S", "_LAST_BYTES_S"):
        monkeypatch.setattr(module, name, 0.0)


def working(*numbers: int, left_s: float = LEFT_S) -> list[Any]:
    return [DrainState(number, left_s) for number in numbers]


def drained(*answers: list[Any]) -> tuple[DrainState, list[str]]:
    told: list[str] = []
    handle = cast(Any, Handle(*answers))
    return drain(handle, lambda state: told.append(str(state))), told


def test_nothing_is_said_where_nothing_is_in_work() -> None:
    assert drained(working(0, 0)) == (DrainState(0, LEFT_S), [])


def test_the_requests_of_all_routers_are_told_when_their_number_changes() -> None:
    state, told = drained(working(2, 1), working(2, 1), working(1, 0), working(0, 0))
    assert state.in_work == 0
    assert told == [
        "waiting for 3 requests, at most 100 s",
        "waiting for 1 request, at most 100 s",
    ]


def test_a_router_that_dies_is_not_waited_for() -> None:
    state, told = drained(working(2, 3), [ActorDiedError(), DrainState(0, LEFT_S)])
    assert (state.in_work, len(told)) == (0, 1)
    assert drained([ActorDiedError()])[0].in_work == 0


def test_requests_that_the_limit_does_not_end_are_left() -> None:
    state, told = drained(working(2), working(1, left_s=-1), working(1, left_s=-60))
    assert state.in_work == 1
    assert told[-1] == "1 request did not end in time"


@pytest.mark.parametrize(
    "error", [GetTimeoutError(), DeploymentUnavailableError(cast(Any, None))]
)
def test_an_application_that_does_not_answer_is_an_error(error: Exception) -> None:
    with pytest.raises(type(error)):
        drained(working(2), [error])
