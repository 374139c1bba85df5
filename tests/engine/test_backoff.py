from deployments.engine.backoff import BatchLimit


def turns(limit: BatchLimit, count: int) -> list[int]:
    sizes = []
    for _ in range(count):
        limit.turn_ended()
        sizes.append(limit.windows)
    return sizes


def test_without_failures_all_windows_take_a_step_together() -> None:
    assert turns(BatchLimit(8, calm_turns=2), 5) == [8] * 5


def test_a_failure_halves_the_limit_until_a_window_is_alone() -> None:
    limit, sizes = BatchLimit(8), []
    for windows in (7, 3):
        limit.failed(windows)
        sizes.append(limit.windows)
    assert sizes == [3, 1]


def test_the_limit_doubles_after_calm_turns() -> None:
    limit = BatchLimit(8, calm_turns=3)
    limit.failed(4)
    assert turns(limit, 7) == [2, 2, 4, 4, 4, 8, 8]


def test_another_failure_begins_the_calm_anew() -> None:
    limit = BatchLimit(8, calm_turns=3)
    limit.failed(8)
    assert turns(limit, 2) == [4, 4]
    limit.failed(4)
    assert turns(limit, 3) == [2, 2, 4]


def test_a_window_that_fails_alone_lifts_the_limit() -> None:
    limit = BatchLimit(8)
    limit.failed(2)
    assert limit.windows == 1
    limit.failed(1)
    assert limit.windows == 8
