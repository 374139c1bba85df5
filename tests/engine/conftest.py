from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch
from whisper.model import Whisper

from deployments.engine import Engine
from tests.support.engine import devices
from tests.support.engine.calls import (
    PATIENCE_S,
    Calls,
    Gate,
    StuckEncoder,
    exact_engine,
)
from tests.support.engine.tiny_whisper import tiny_whisper


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs minutes")
    devices.choose(config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products gain nothing from more threads, which hold each other up on busy cores."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def inference_mode() -> Iterator[None]:
    """Run the test in inference mode, like the engine's thread."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Whisper:
    return tiny_whisper()


@pytest.fixture
def slots() -> int | None:
    """How many slots the engine has; None: as many as it likes."""
    return None


@pytest.fixture
def engine(tiny_model: Whisper, slots: int | None) -> Iterator[Engine]:
    with exact_engine(tiny_model, slots) as engine:
        yield engine
    assert engine.join(PATIENCE_S)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


@pytest.fixture
def gate(engine: Engine, threads: ThreadPoolExecutor) -> Iterator[Gate]:
    gate = Gate(engine)
    yield gate
    gate.opened.set()


@pytest.fixture
def stuck(engine: Engine, threads: ThreadPoolExecutor) -> Iterator[StuckEncoder]:
    stuck = StuckEncoder(engine)
    yield stuck
    stuck.let_go.set()


@pytest.fixture
def calls(engine: Engine, threads: ThreadPoolExecutor) -> Calls:
    return Calls(engine, threads)
