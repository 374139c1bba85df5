"""Look-ups against a resolver that hangs, fails and answers as a test tells it."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.audio.download.resolver import Endpoint, Resolver
from deployments.contract.errors import AudioHostError, OverloadedError
from tests.support.app import wait_for
from tests.support.downloads import PATIENCE_S

ANSWER = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
ENDPOINT = Endpoint(socket.AF_INET, ("93.184.216.34", 80))


class Names:
    """Names that begin with `slow` are answered when the test is over, or lets them go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, *_: object, **__: object) -> object:
        self.asked.append(host)
        if host.startswith("slow"):
            self.let_go.wait(PATIENCE_S)
        if host == "unknown":
            raise socket.gaierror(socket.EAI_NONAME, "SECRET")
        return ANSWER


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.let_go.set()
    wait_for(lambda: "resolver" not in [t.name for t in threading.enumerate()])


def test_a_name_has_its_addresses(names: Names) -> None:
    assert Resolver().look_up("known", 80, 60) == [ENDPOINT]


def test_a_name_that_is_not_known_is_told_as_the_system_tells_it(names: Names) -> None:
    with pytest.raises(socket.gaierror) as caught:
        Resolver().look_up("unknown", 80, 60)
    assert caught.value.errno == socket.EAI_NONAME


@pytest.mark.parametrize(("limit_s", "caller_s"), [(0.1, 60), (60, 0.1)])
def test_a_look_up_ends_in_time_whatever_the_system_does(
    names: Names, limit_s: float, caller_s: float
) -> None:
    with pytest.raises(AudioHostError, match="host name not resolved within 0.1 s"):
        Resolver(timeout_s=limit_s).look_up("slow", 80, caller_s)


def test_a_few_slow_names_hold_up_no_other_one(names: Names) -> None:
    resolver = Resolver(threads=3, timeout_s=0.1)
    for _ in range(2):
        with pytest.raises(AudioHostError):
            resolver.look_up("slow", 80, 60)
    assert resolver.look_up("known", 80, 60) == [ENDPOINT]


def test_where_all_look_ups_are_stuck_the_next_one_is_refused_at_once(
    names: Names,
) -> None:
    resolver = Resolver(threads=2, timeout_s=1000)
    for _ in range(2):
        with pytest.raises(AudioHostError):
            resolver.look_up("slow", 80, 0.1)
    started = time.monotonic()
    with pytest.raises(OverloadedError, match="^Too many host names wait"):
        resolver.look_up("known", 80, 1000)
    assert time.monotonic() - started < PATIENCE_S
    assert names.asked == ["slow", "slow"]
    names.let_go.set()
    wait_for(lambda: "resolver" not in [t.name for t in threading.enumerate()])
    assert resolver.look_up("known", 80, 60) == [ENDPOINT]


def test_more_look_ups_than_threads_wait_for_their_turn(names: Names) -> None:
    resolver = Resolver(threads=2, timeout_s=PATIENCE_S)
    with ThreadPoolExecutor(6) as threads:
        answers = [
            threads.submit(resolver.look_up, f"slow{n}", 80, 60) for n in range(6)
        ]
        wait_for(lambda: len(names.asked) == 2)
        assert not any(answer.done() for answer in answers)
        names.let_go.set()
        assert [answer.result() for answer in answers] == [[ENDPOINT]] * 6


def test_what_waits_for_a_turn_in_vain_is_told_that_others_are_before_it(
    names: Names,
) -> None:
    resolver = Resolver(threads=1, timeout_s=PATIENCE_S)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(resolver.look_up, "slow", 80, 60)
        wait_for(lambda: names.asked)
        with pytest.raises(OverloadedError):
            resolver.look_up("known", 80, 0.1)
        names.let_go.set()
        assert first.result() == [ENDPOINT]
