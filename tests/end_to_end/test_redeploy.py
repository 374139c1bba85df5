"""An application that is deployed again, or whose Router dies, while requests are in work."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests
from ray import serve

from deployments.app import build_app
from deployments.config import AppArgs, ModelArgs
from tests.support.app import ENDLESS, App, Url, repeated, replica_pids, wait_for
from tests.support.misbehaving_server import Connection, MisbehavingServer

NAME = "redeployed"
DEPLOYMENTS = ("Router", "whisper-tiny.en")
# The application is deployed again as soon as the requests have their slots, long before this much
# work is done.
REPEATS = 8


def deploy(**limits: Any) -> None:
    """Returns when the new Router and the new replica run, and old ones have stopped."""
    models = [ModelArgs(name="tiny.en")]
    args = AppArgs(
        default_model="tiny.en",
        models=models,
        device="cpu",
        read_timeout_s=600,
        allow_private_networks=True,
        **limits,
    )
    serve.run(build_app(args), name=NAME, route_prefix=f"/{NAME}")


@pytest.fixture
def redeployed(app: App) -> Iterator[App]:
    deploy()
    yield App(f"{app.url}/{NAME}", app.checkpoints)
    serve.delete(NAME)


def pids(deployment: str) -> set[int]:
    return set(replica_pids(deployment, NAME))


def slots_in_use() -> int:
    """As the replicas tell it themselves."""
    replicas = serve.get_deployment_handle("whisper-tiny.en", NAME)
    answers = replicas.broadcast("slots").results(timeout_s=60)
    return sum(answer.slots_in_use for answer in answers)


@contextlib.contextmanager
def in_flight(
    app: App, number: int, **request: Any
) -> Iterator[list[Future[requests.Response]]]:
    """Requests that have their slots within the block; it ends when all are answered."""
    with ThreadPoolExecutor(number) as threads:
        answers = [threads.submit(app.post, **request) for _ in range(number)]
        wait_for(lambda: slots_in_use() == number)
        yield answers


@pytest.mark.slow
def test_a_redeploy_costs_nobody_an_answer(redeployed: App, audio_url: Url) -> None:
    request = {"audio": audio_url("gettysburg.wav")} | repeated(REPEATS)
    let_go = threading.Event()

    def held_back(connection: Connection) -> None:
        connection.request()
        let_go.wait(300)

    before = {name: pids(name) for name in DEPLOYMENTS}
    with MisbehavingServer() as server, ThreadPoolExecutor(2) as threads:
        server.answer(held_back)
        waiting = threads.submit(redeployed.post, audio=server.url())
        wait_for(lambda: server.requests)
        with in_flight(redeployed, 6, **request) as answers:
            done = threads.submit(deploy, max_audio_s=7200)
            # The old Router is still there beside the new one, for the request that waits.
            wait_for(lambda: before["Router"] < pids("Router"))
            assert redeployed.post(audio=audio_url("silence.wav")).status_code == 200
        for answer in answers:
            assert answer.result().status_code == 200, answer.result().text
        assert not waiting.done() and not done.done()
        let_go.set()
        # The old Router answers with the contract's error: it was not cut off.
        assert waiting.result().json()["type"] == "audio_host_error"
        done.result()
    assert all(old.isdisjoint(pids(name)) for name, old in before.items())
    assert [len(pids(name)) for name in DEPLOYMENTS] == [1, 1]


@pytest.mark.slow
def test_what_a_dead_router_has_asked_for_is_cancelled(
    redeployed: App, audio_url: Url
) -> None:
    request = {"audio": audio_url("gettysburg.wav")} | ENDLESS
    [router], replicas = pids("Router"), pids("whisper-tiny.en")
    with in_flight(redeployed, 6, **request) as answers:
        os.kill(router, signal.SIGKILL)
    for answer in answers:
        assert answer.result().status_code >= 500
    wait_for(lambda: slots_in_use() == 0)
    wait_for(lambda: requests.get(f"{redeployed.url}/health", timeout=60).ok)
    assert redeployed.model("tiny.en")["slots_in_use"] == 0
    assert pids("whisper-tiny.en") == replicas
