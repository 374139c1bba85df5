"""What is counted of each request. Ray's counters are replaced by lists. No Ray cluster."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray.serve.metrics

from deployments.contract.errors import OverloadedError, WhisperServeError
from deployments.router import metrics
from deployments.router.request_log import caller_key, log_refusal, logged_request

Counted = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """What the counters were told: name, increment, tags."""
    counted: Counted = []

    class Counter:
        def __init__(self, name: str, description: str, tag_keys: Any) -> None:
            assert description.endswith(".")
            self._name, self._tag_keys = name, tag_keys

        def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            assert value > 0  # Ray raises otherwise
            assert tags is not None
            assert tuple(tags) == self._tag_keys
            counted.append((self._name, value, tags))

    monkeypatch.setattr(ray.serve.metrics, "Counter", Counter)
    metrics._metric.cache_clear()
    yield counted
    metrics._metric.cache_clear()


def test_a_request_is_counted_by_model_status_and_key(counted: Counted) -> None:
    token = caller_key.set("alice")
    with logged_request(None) as entry:
        entry.model, entry.duration_s = "base", 11.0
    caller_key.reset(token)
    assert counted == [
        (
            "whisper_requests",
            1,
            {"model": "base", "status": "200", "reason": "ok", "key": "alice"},
        ),
        ("whisper_request_audio_seconds", 11, {"model": "base", "key": "alice"}),
    ]


def test_the_audio_of_a_request_that_failed_is_not_counted(counted: Counted) -> None:
    with pytest.raises(OverloadedError), logged_request(None) as entry:
        entry.model, entry.duration_s = "base", 11.0
        raise OverloadedError
    assert counted == [
        (
            "whisper_requests",
            1,
            {"model": "base", "status": "503", "reason": "overloaded", "key": "-"},
        )
    ]


def test_the_reason_of_an_unforeseen_error_is_one_label_whatever_it_is(
    counted: Counted,
) -> None:
    for error in (KeyError("x"), ZeroDivisionError()):
        with pytest.raises(WhisperServeError), logged_request(None):
            raise error
    assert {tags["reason"] for _, _, tags in counted} == {"internal_error"}


def test_what_a_door_refuses_is_counted_too(counted: Counted) -> None:
    log_refusal(None, 401, "unauthorized")
    assert counted == [
        (
            "whisper_requests",
            1,
            {"model": "-", "status": "401", "reason": "unauthorized", "key": "-"},
        )
    ]


def test_outside_a_replica_rays_own_counters_do_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics._metric.cache_clear()
    with caplog.at_level(logging.INFO), logged_request("an-id") as entry:
        entry.duration_s = 1.0
    [told] = [r.getMessage() for r in caplog.records]
    assert told.startswith("request_id=an-id model=- status=200 ")


def test_held_audio_is_shown_again_while_it_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[float, dict[str, str]]] = []
    enough = threading.Event()

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: Any) -> None:
            assert name == "whisper_held_audio_seconds"

        def set(self, value: float, tags: dict[str, str]) -> None:
            shown.append((value, tags))
            if len(shown) == 6:
                enough.set()

    monkeypatch.setattr(ray.serve.metrics, "Gauge", Gauge)
    metrics._metric.cache_clear()
    held = metrics._HeldAudio(period_s=0.01)
    metrics._metric.cache_clear()
    held.show("base", {"waiting": 0.0, "in_work": 3600.0})
    assert enough.wait(60)
    assert shown[4:6] == shown[:2]
    assert shown[1] == (3600.0, {"model": "base", "state": "in_work"})
