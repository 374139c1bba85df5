"""The real SDK's loop, in a process of its own, against a stand-in of RunPod's job API."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import job_api
from tests.support.job_api import JobApi, Post
from tests.support.runpod_process import Worker

CONCURRENCY = 8


def start_worker(api: JobApi, folder: Path) -> Worker:
    return Worker(api, folder / "log", "tests.support.echo_worker", str(CONCURRENCY))


@pytest.fixture(scope="module")
def api() -> Iterator[JobApi]:
    with JobApi() as api:
        yield api


@pytest.fixture(autouse=True)
def taking_everything(api: JobApi) -> Iterator[None]:
    yield
    api.refuse = lambda post: None


@pytest.fixture(scope="module")
def worker(api: JobApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = start_worker(api, tmp_path_factory.mktemp("worker"))
    yield worker
    worker.process.terminate()
    assert worker.process.wait(30) == 0, worker.log
    # Whatever the tests had it do: neither a secret nor an address is in its log.
    for private in ("secret-key-of-the-test", "127.0.0.1", "job-done", "Traceback"):
        assert private not in worker.log


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[JobApi], Worker]]:
    """Starts workers of the test's own."""
    workers: list[Worker] = []

    def start(api: JobApi) -> Worker:
        workers.append(start_worker(api, tmp_path))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def test_jobs_are_taken_in_batches_and_done_at_the_same_time(
    api: JobApi, worker: Worker
) -> None:
    results = api.results(*api.submit(*[{"sleep": 1}] * 2 * CONCURRENCY))
    assert {result["output"]["echo"] for result in results} == {"x"}
    assert max(result["output"]["most_at_once"] for result in results) == CONCURRENCY
    assert api.calls[0][0] == "batch"


def test_of_two_hundred_short_jobs_in_a_row_none_is_lost(
    api: JobApi, worker: Worker
) -> None:
    jobs = api.submit(*[{}] * 200, prefix="short")
    assert len(api.results(*jobs, timeout_s=200)) == 200
    assert all(len(api.of(job)) == 1 for job in jobs)


def test_a_cancelled_job_is_stopped_and_the_others_are_not(
    api: JobApi, worker: Worker
) -> None:
    long, other = api.submit({"sleep": 60}, {"sleep": 2}, prefix="cancel")
    worker.wait_until(lambda: long in api.taken)
    api.cancel(long)
    worker.wait_until(lambda: f"cancelled {long}" in worker.log)
    assert api.results(other)[0]["output"]["echo"] == "x"
    assert not api.of(long)


def test_a_result_is_posted_until_the_job_api_takes_it(
    api: JobApi, worker: Worker
) -> None:
    failures = iter([500, 502, 503, 429, 408])

    def refuse(_: Post) -> tuple[int, str] | None:
        status = next(failures, None)
        return (status, "later") if status else None

    api.refuse = refuse
    [job] = api.submit({}, prefix="patience")
    [result] = api.results(job)
    assert result["output"]["echo"] == "x"
    statuses = [post.status for post in api.of(job)]
    assert statuses == [500, 502, 503, 429, 408, 200]
    assert worker.log.count("event=result_delayed job=patience-1 error=HTTP_500") == 1


@pytest.mark.parametrize("status", [400, 413])
def test_a_result_that_is_refused_is_logged_with_its_size_and_becomes_an_error(
    api: JobApi, worker: Worker, status: int
) -> None:
    def refuse(post: Post) -> tuple[int, str] | None:
        return (status, "too\nlarge") if post.size > 1000 else None

    api.refuse = refuse
    [job] = api.submit({"bytes": 2_000_000}, prefix=f"refused{status}")
    [result] = api.results(job)
    assert result == {
        "error": f"The job API refused the result of 2.0 MB (HTTP {status})"
    }
    [line] = [
        line
        for line in worker.log.splitlines()
        if "event=result_refused" in line and job in line
    ]
    size = api.of(job)[0].size
    assert f"bytes={size} status={status}" in line
    assert 'answer="too\\nlarge"' in line


def test_a_job_that_is_no_longer_wanted_is_given_up(
    api: JobApi, worker: Worker
) -> None:
    api.refuse = lambda post: (404, "gone")
    [job] = api.submit({}, prefix="gone")
    worker.wait_until(lambda: len(api.of(job)) == 2)
    api.refuse = lambda post: None
    api.results(*api.submit({}, prefix="after"))
    assert len(api.of(job)) == 2


def test_jobs_without_an_id_are_left_alone(api: JobApi, worker: Worker) -> None:
    api.put("no object", {"input": {}}, {"id": 5, "input": {}})
    worker.wait_until(lambda: "event=jobs_without_id" in worker.log)
    api.results(*api.submit({}, prefix="whole"))


def test_heartbeats_tell_the_jobs_in_work(api: JobApi, worker: Worker) -> None:
    [job] = api.submit({"sleep": 5}, prefix="ping")
    worker.wait_until(lambda: any(job in ping.get("job_id", "") for ping in api.pings))


def test_after_sigterm_jobs_in_work_are_finished_and_posted(
    started: Callable[[JobApi], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long polls that would be waited for would show.
    monkeypatch.setattr(job_api, "POLL_S", 80)
    with JobApi() as api:
        worker = started(api)
        jobs = api.submit(*[{"sleep": 3}] * 4)
        worker.wait_until(lambda: len(api.taken) == 4)
        assert len(worker.pids()) > 1
        worker.process.terminate()
        assert worker.process.wait(20) == 0, worker.log
        assert len(api.results(*jobs, timeout_s=0)) == 4
        worker.wait_until(lambda: not worker.pids())


@pytest.mark.parametrize("service_dies", [False, True])
def test_a_full_worker_that_is_to_stop_takes_no_more_jobs(
    started: Callable[[JobApi], Worker], service_dies: bool
) -> None:
    with JobApi() as api:
        worker = started(api)
        first = [{"sleep": 1, "die": service_dies}]
        in_work = api.submit(*first, *[{"sleep": 1.5}] * (CONCURRENCY - 1))
        worker.wait_until_taken(in_work)
        waiting = api.submit(*[{}] * 3, prefix="waiting")
        if not service_dies:
            worker.process.terminate()
        assert worker.process.wait(30) == int(service_dies), worker.log
        assert len(api.results(*in_work, timeout_s=0)) == CONCURRENCY
        # The first one's place was free while the worker still ran.
        assert not [job for job in waiting if job in api.taken]


def test_a_worker_whose_service_has_died_posts_its_jobs_and_fails(
    started: Callable[[JobApi], Worker],
) -> None:
    with JobApi() as api:
        worker = started(api)
        jobs = api.submit({"sleep": 3}, {"die": True})
        assert worker.process.wait(30) == 1, worker.log
        assert len(api.results(*jobs, timeout_s=0)) == 2


def test_the_heartbeat_ends_with_a_worker_that_is_killed(
    started: Callable[[JobApi], Worker],
) -> None:
    with JobApi() as api:
        worker = started(api)
        worker.wait_until(lambda: api.pings)
        assert len(worker.pids()) > 1
        worker.process.kill()
        worker.wait_until(lambda: not worker.pids(), 5)


def test_a_job_api_that_cannot_be_reached_is_waited_for_in_silence(
    started: Callable[[JobApi], Worker],
) -> None:
    with JobApi() as gone:
        pass
    worker = started(gone)
    worker.wait_until(lambda: "event=job_api_unreachable call=job-take" in worker.log)
    time.sleep(6)
    lines = worker.log.splitlines()
    told = [line for line in lines if "event=job_api_unreachable" in line]
    assert {line.split()[1] for line in told} <= {
        "call=job-take",
        "call=job-stop",
        "call=ping",
    }
    assert len(told) <= 3
    assert len(lines) < 10, worker.log
    with JobApi(url=gone.url) as back:
        back.results(*back.submit({}))
    for private in ("secret-key-of-the-test", "127.0.0.1", "Traceback"):
        assert private not in worker.log


async def test_a_job_that_comes_with_the_signal_to_stop_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from runpod.serverless.modules import rp_scale

    from deployments.runpod import loop as runpod_sdk

    done = []
    ended = asyncio.Event()

    async def get_job(*_: object) -> list[dict[str, Any]]:
        scaler.kill_worker()
        # The loop that starts jobs has seen the signal by now.
        await asyncio.sleep(0)
        return [{"id": "late", "input": {}}]

    async def no_stops(*_: object) -> list[str]:
        await ended.wait()
        return []

    async def do(_: object, __: object, job: dict[str, Any]) -> None:
        done.append(job["id"])

    monkeypatch.setattr(rp_scale, "get_job", get_job)
    monkeypatch.setattr(rp_scale, "get_stop_signals", no_stops)
    scaler = runpod_sdk._PatientScaler({"concurrency_modifier": lambda _: 2})
    scaler.jobs_handler = do
    async with asyncio.timeout(10):
        await scaler.run()
    assert done == ["late"]
