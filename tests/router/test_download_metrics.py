"""What is told of downloads and of their room. Ray's metrics are replaced by lists; no Ray."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray.serve.metrics

from deployments.audio.spool import Spool
from deployments.contract.errors import OverloadedError
from deployments.router.download_metrics import report_downloads


class Metric:
    """Keeps what it was told."""

    def __init__(self, name: str, description: str, tag_keys: Any) -> None:
        assert description.endswith(".")
        self.tag_keys = tag_keys
        self.values: list[float] = []
        told[name] = self

    def set(self, value: float) -> None:
        self.values.append(value)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # Ray raises otherwise
        assert tuple(tags) == self.tag_keys
        told[f"{self.tag_keys[0]}={tags[self.tag_keys[0]]}"] = self
        self.values.append(value)


class Places:
    held, waiting = 3, 2


told: dict[str, Metric] = {}


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    told.clear()
    monkeypatch.setattr(ray.serve.metrics, "Gauge", Metric)
    monkeypatch.setattr(ray.serve.metrics, "Counter", Metric)


def values_of(name: str) -> list[float]:
    """Empty where nothing has been told yet."""
    return told[name].values if name in told else []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_gauges_are_set_again_and_again_until_the_places_are_gone() -> None:
    places, spool = Places(), Spool(10)
    with spool.share("-") as share:
        share.received(7)
        report_downloads(places, spool, period_s=0.005)
        wait_for(lambda: len(values_of("whisper_spool_bytes")) > 3)
    wait_for(lambda: told["whisper_spool_bytes"].values[-1] == 0)
    assert told["whisper_spool_bytes"].values[0] == 7
    assert set(told["whisper_downloads_in_progress"].values) == {3}
    assert set(told["whisper_downloads_waiting"].values) == {2}
    del places
    values = told["whisper_spool_bytes"].values

    def ended() -> bool:
        before = len(values)
        time.sleep(0.05)
        return len(values) == before

    wait_for(ended)


def test_files_without_room_are_counted_by_the_limit() -> None:
    places, spool = Places(), Spool(10)
    report_downloads(places, spool, period_s=0.005)
    with spool.share("-") as share:
        for _ in range(2):
            with pytest.raises(OverloadedError):
                share.received(11)
    wait_for(lambda: "limit=max_spool_bytes" in told)
    wait_for(lambda: sum(told["whisper_spool_no_room"].values) == 2)
    del places
