"""The worker of a load-balancing endpoint as its container runs it: no jobs, HTTP alone."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI

from deployments.local import loopback
from tests.support.app import repeated
from tests.support.job_api import LIMIT_S, JobApi
from tests.support.routers import AUDIO
from tests.support.runpod_process import Worker, running_worker

pytestmark = pytest.mark.slow

LB = {"WHISPER_ENDPOINT_TYPE": "LB", "API_KEYS": "none"}


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Of HTTP, and of health."""
    return loopback.free_port("127.0.0.1"), loopback.free_port("127.0.0.1")


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory,
    ports: tuple[int, int],
    audio_url: Callable[[str], str],
) -> Iterator[Worker]:
    log = tmp_path_factory.mktemp("worker") / "log"
    http, health = map(str, ports)
    with running_worker(
        log, audio_url(""), PORT=http, PORT_HEALTH=health, **LB
    ) as worker:
        yield worker


def url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}{path}"


def ping(port: int) -> int:
    try:
        return requests.get(url(port, "/ping"), timeout=LIMIT_S).status_code
    except requests.ConnectionError:
        return 0


def test_both_ports_say_that_it_is_ready(
    worker: Worker, ports: tuple[int, int]
) -> None:
    assert [ping(port) for port in ports] == [200, 200]
    assert f"event=ready model=tiny.en port={ports[0]}" in worker.log


def test_the_unchanged_sdk_of_openai_works(
    worker: Worker, ports: tuple[int, int]
) -> None:
    client = OpenAI(
        base_url=url(ports[0], "/v1"),
        # RunPod checks its own key, which may arrive here.
        api_key="rpa_KEY",
        _strict_response_validation=True,
    )
    with client, (AUDIO / "jfk.flac").open("rb") as file:
        answer = client.audio.transcriptions.create(
            model="whisper-1", file=file, response_format="verbose_json"
        )
        assert "my fellow Americans" in answer.text
        assert answer.segments
        assert "tiny.en" in [model.id for model in client.models.list()]


def test_it_takes_no_jobs_and_ends_after_the_requests_in_work(
    worker: Worker, ports: tuple[int, int], audio_url: Callable[[str], str]
) -> None:
    worker.api.submit({"audio": audio_url("jfk.flac")})
    request = repeated(3) | {"audio": audio_url("gettysburg.wav")}
    answers: list[requests.Response] = []

    def ask() -> None:
        address = url(ports[0], "/transcribe")
        answers.append(requests.post(address, json=request, timeout=LIMIT_S))

    asking = threading.Thread(target=ask)
    asking.start()

    def in_work() -> Any:
        models = requests.get(url(ports[0], "/models"), timeout=LIMIT_S).json()
        return any(model["slots_in_use"] for model in models["data"])

    worker.wait_until(in_work)
    worker.process.terminate()
    worker.wait_until(lambda: "event=draining" in worker.log)
    assert [ping(port) for port in ports] == [204, 204]
    asking.join(LIMIT_S)
    [answer] = answers
    assert "score and seven" in answer.json()["transcription"]
    assert worker.process.wait(LIMIT_S) == 0, worker.log
    worker.wait_until(lambda: not worker.pids())
    assert not worker.api.calls


def test_its_health_is_told_from_the_start_and_a_dead_service_ends_it(
    tmp_path: Path,
) -> None:
    http, health = loopback.free_port("127.0.0.1"), loopback.free_port("127.0.0.1")
    with JobApi() as api:
        worker = Worker(
            api, tmp_path / "log", PORT=str(http), PORT_HEALTH=str(health), **LB
        )
        try:
            worker.wait_until(lambda: ping(health) == 204)
            assert not worker.pids("gcs_server")
            worker.wait_until(lambda: worker.pids("^ray::ServeReplica"))
            assert ping(health) == 204
            worker.wait_until_ready()
            worker.wait_until(lambda: ping(health) == 200)
            assert worker.pids()
            worker.kill("gcs_server")
            assert worker.process.wait(LIMIT_S) == 1, worker.log
            worker.wait_until(lambda: not worker.pids())
            assert "event=service_died" in worker.log
        finally:
            worker.process.kill()
            worker.process.wait()
