"""What a replica tells Ray's metrics, which are replaced by lists. No Ray cluster."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest

from deployments.engine import Engine, EngineStats, Usage
from deployments.replica import metrics
from deployments.replica.metrics import EngineMetrics


class Metric:
    """A counter, gauge or histogram that keeps what it is told."""

    made: ClassVar[dict[str, "Metric"]] = {}

    def __init__(self, name: str, description: str, *rest: Any) -> None:
        assert description.endswith(".")
        *_, self.tag_keys = rest
        self.values: list[float] = []
        Metric.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.tags = tags

    def inc(self, value: float) -> None:
        assert value > 0  # Ray raises otherwise
        self.values.append(value)

    def set(self, value: float) -> None:
        self.values.append(value)

    observe = set


@dataclass
class StubEngine:
    """Does nothing, and says what it is told to say."""

    figures: EngineStats
    alive: bool = True

    def stats(self) -> EngineStats:
        return self.figures


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Metric]:
    """The metrics by name."""
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, Metric)
    monkeypatch.setattr(metrics, "_PERIOD_S", 0.01)
    monkeypatch.setattr(Metric, "made", {})
    return Metric.made


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine(EngineStats(8, 0, 0, 1, 1.0, 10**7, 10**8))


def watch(engine: StubEngine) -> None:
    EngineMetrics("base").watch(cast(Engine, engine))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_metric_tells_the_model(told: dict[str, Metric]) -> None:
    EngineMetrics("base")
    assert set(told) == {
        "whisper_windows_decoded",
        "whisper_audio_seconds",
        "whisper_slots_in_use",
        "whisper_windows_waiting",
        "whisper_queue_seconds",
        "whisper_batch_occupancy",
    }
    assert all(metric.tags == {"model": "base"} for metric in told.values())


def test_gauges_are_set_again_and_again_also_while_nothing_happens(
    told: dict[str, Metric], engine: StubEngine
) -> None:
    watch(engine)
    gauges = [told["whisper_slots_in_use"], told["whisper_windows_waiting"]]
    wait_for(lambda: all(len(gauge.values) > 3 for gauge in gauges))
    assert all(set(gauge.values) == {0} for gauge in gauges)
    engine.figures = replace(engine.figures, slots_in_use=8, windows_waiting=3)
    wait_for(lambda: [gauge.values[-1] for gauge in gauges] == [8, 3])
    engine.alive = False


def test_counters_count_what_the_engine_does_from_then_on(
    told: dict[str, Metric], engine: StubEngine
) -> None:
    # One window and one second are of the warm-up.
    watch(engine)
    windows, seconds = told["whisper_windows_decoded"], told["whisper_audio_seconds"]
    wait_for(lambda: told["whisper_slots_in_use"].values)
    engine.figures = replace(engine.figures, windows_done=3)
    wait_for(lambda: sum(windows.values) == 2)
    assert seconds.values == []
    engine.figures = replace(engine.figures, windows_done=4, audio_seconds_done=91.0)
    wait_for(lambda: (sum(windows.values), sum(seconds.values)) == (3, 90.0))
    engine.alive = False


def test_an_engine_that_is_gone_is_no_longer_watched(
    told: dict[str, Metric], engine: StubEngine
) -> None:
    watch(engine)
    values = told["whisper_slots_in_use"].values
    wait_for(lambda: values)
    engine.alive = False
    time.sleep(0.05)
    before = len(values)
    time.sleep(0.05)
    assert len(values) == before


def test_a_requests_wait_and_company_are_observed(told: dict[str, Metric]) -> None:
    EngineMetrics("base").observe(Usage(queue_s=0.5, windows=3, occupancy=2.5))
    assert told["whisper_queue_seconds"].values == [0.5]
    assert told["whisper_batch_occupancy"].values == [2.5]
