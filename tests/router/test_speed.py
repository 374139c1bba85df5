"""How fast a model is, on a clock that the tests turn."""

import pytest

from deployments.router.speed import Speed, retry_after_s


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_until_a_request_has_succeeded() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.per_s is None
    begun = speed.begin()
    clock.now += 10
    speed.end(begun, None)
    assert speed.per_s is None


def test_time_without_work_does_not_count() -> None:
    clock = Clock()
    speed = Speed(clock)
    for _ in range(3):
        clock.now += 1000
        begun = speed.begin()
        clock.now += 2
        speed.end(begun, 30.0)
    assert speed.per_s == pytest.approx(15)


def test_requests_that_are_worked_on_together_share_the_time() -> None:
    clock = Clock()
    speed = Speed(clock)
    together = [speed.begin() for _ in range(4)]
    clock.now += 10
    for begun in together:
        speed.end(begun, 30.0)
    assert speed.per_s == pytest.approx(12)


def test_a_long_recording_does_not_distort_what_is_measured_beside_it() -> None:
    # A model that does 20 s of audio a second, half of them for the long recording.
    clock = Clock()
    speed = Speed(clock)
    long = speed.begin()
    for _ in range(100):
        short = speed.begin()
        clock.now += 1
        speed.end(short, 10.0)
        assert speed.per_s == pytest.approx(20)
    speed.end(long, 1000.0)
    assert speed.per_s == pytest.approx(20)


def test_the_latest_requests_count_the_most() -> None:
    clock = Clock()
    speed = Speed(clock)
    for audio_s, times in ((10.0, 200), (40.0, 100)):
        for _ in range(times):
            begun = speed.begin()
            clock.now += 1
            speed.end(begun, audio_s)
    assert speed.per_s == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize(
    ("wait_s", "expected"), [(None, None), (0.0, 1), (0.4, 1), (20.0, 20), (7200.0, 60)]
)
def test_retry_after_is_a_whole_number_of_seconds_that_clients_obey(
    wait_s: float | None, expected: int | None
) -> None:
    assert retry_after_s(wait_s, jitter=lambda low, high: (low + high) / 2) == expected


def test_callers_who_are_refused_together_do_not_return_together() -> None:
    waits = {retry_after_s(30.0) for _ in range(1000)}
    assert waits <= set(range(24, 37)) and len(waits) > 5
