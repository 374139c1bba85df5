"""The worker's loop, in a process of its own, against a stand-in of RunPod's job API.

The session and the URLs are the real SDK's. Pauses are a twentieth of the worker's own,
see tests/support/echo_worker.py.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from runpod.serverless.modules import rp_job

from deployments.runpod import sdk
from deployments.runpod.job_api import JobApi as Client
from deployments.runpod.job_api import Patience
from deployments.runpod.loop import JobLoop
from deployments.runpod.outage_log import Backoff
from tests.support import job_api
from tests.support.job_api import LIMIT_S, JobApi, Post
from tests.support.runpod_process import Worker

MAX_CONCURRENCY = 8
PRIVATE = ("secret-key-of-the-test", "127.0.0.1", "job-done", "Traceback")


def start_worker(api: JobApi, folder: Path) -> Worker:
    return Worker(
        api, folder / "log", "tests.support.echo_worker", str(MAX_CONCURRENCY)
    )


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
    assert worker.process.wait(LIMIT_S) == 0, worker.log
    # Whatever the tests made the worker do, its log holds neither a secret nor an address.
    for private in PRIVATE:
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
    results = api.results(*api.submit(*[{"sleep": 1}] * 2 * MAX_CONCURRENCY))
    assert {result["output"]["echo"] for result in results} == {"x"}
    most = max(result["output"]["most_in_work"] for result in results)
    assert most == MAX_CONCURRENCY
    assert next(call for call, _ in api.calls if call != "stop") == "batch"


def test_of_two_hundred_short_jobs_in_a_row_none_is_lost(
    api: JobApi, worker: Worker
) -> None:
    jobs = api.submit(*[{}] * 200, prefix="short")
    assert len(api.results(*jobs)) == 200
    assert all(len(api.of(job)) == 1 for job in jobs)


def test_a_cancelled_job_is_stopped_and_the_others_are_not(
    api: JobApi, worker: Worker
) -> None:
    long, other = api.submit({"sleep": 600}, {"sleep": 1}, prefix="cancel")
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


def test_each_job_leaves_a_line_that_tells_how_it_ended(
    api: JobApi, worker: Worker
) -> None:
    [good] = api.submit({}, prefix="good")
    [bad] = api.submit({"fail": True}, prefix="bad")
    [long] = api.submit({"sleep": 600}, prefix="long")
    assert api.results(bad) == [{"error": "as the job says"}]
    worker.wait_until(lambda: long in api.taken)
    api.cancel(long)
    for job, status in ((good, "ok"), (bad, "error"), (long, "cancelled")):
        line = f"event=job_done job={job} status={status} seconds="
        worker.wait_until(partial(worker_logged, worker, line))


def test_a_heartbeat_that_died_is_started_again(api: JobApi, worker: Worker) -> None:
    [job] = api.submit({"sleep": 600}, prefix="beat")
    worker.wait_until(lambda: job in api.taken)
    worker.kill("spawn_main")
    worker.wait_until(lambda: "event=heartbeat_restarted status=-9" in worker.log)
    pings = len(api.pings)
    worker.wait_until(lambda: len(api.pings) > pings)
    assert job in api.pings[-1].get("job_id", "").split(",")
    api.cancel(job)


def test_heartbeats_name_the_jobs_in_work_and_only_those(
    api: JobApi, worker: Worker
) -> None:
    [job] = api.submit({"sleep": 600}, prefix="ping")

    def named() -> bool:
        return job in api.pings[-1].get("job_id", "").split(",")

    worker.wait_until(lambda: api.pings and named())
    api.cancel(job)
    worker.wait_until(lambda: not named())
    assert api.pings[-1]["runpod_version"]


def test_after_sigterm_jobs_in_work_are_finished_and_posted(
    started: Callable[[JobApi], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker that waited for its long polls would not end.
    monkeypatch.setattr(job_api, "POLL_S", math.inf)
    with JobApi() as api:
        worker = started(api)
        jobs = api.submit(*[{"sleep": 1}] * 4)
        worker.wait_until_taken(jobs)
        assert len(worker.pids()) > 1
        worker.process.terminate()
        assert worker.process.wait(LIMIT_S) == 0, worker.log
        assert len(api.results(*jobs, timeout_s=0)) == 4
        worker.wait_until(lambda: not worker.pids())


@pytest.mark.parametrize("service_dies", [False, True])
def test_a_full_worker_that_is_to_stop_finishes_its_jobs_and_takes_no_more(
    started: Callable[[JobApi], Worker], service_dies: bool
) -> None:
    with JobApi() as api:
        worker = started(api)
        first = [{"sleep": 1, "die": service_dies}]
        in_work = api.submit(*first, *[{"sleep": 1.5}] * (MAX_CONCURRENCY - 1))
        worker.wait_until_taken(in_work)
        waiting = api.submit(*[{}] * 3, prefix="waiting")
        if not service_dies:
            worker.process.terminate()
        assert worker.process.wait(LIMIT_S) == int(service_dies), worker.log
        assert len(api.results(*in_work, timeout_s=0)) == MAX_CONCURRENCY
        # The first job's place was free while the worker still ran.
        assert not [job for job in waiting if job in api.taken]


def test_the_heartbeat_ends_with_a_worker_that_is_killed(
    started: Callable[[JobApi], Worker],
) -> None:
    with JobApi() as api:
        worker = started(api)
        worker.wait_until(lambda: api.pings)
        assert len(worker.pids()) > 1
        worker.process.kill()
        worker.wait_until(lambda: not worker.pids())


def test_a_job_api_that_cannot_be_reached_is_waited_for_in_silence(
    started: Callable[[JobApi], Worker],
) -> None:
    with JobApi() as gone:
        pass
    worker = started(gone)
    for call in ("job-take", "job-stop", "ping"):
        beginning = f"event=job_api_unreachable call={call}"
        worker.wait_until(partial(worker_logged, worker, beginning))
    # Time for a few more failures of each call, which are not to be logged.
    time.sleep(1)
    assert worker.log.count("event=job_api_unreachable") == 3
    assert len(worker.log.splitlines()) < 10, worker.log
    with JobApi(url=gone.url) as back:
        back.results(*back.submit({}))
        worker.wait_until(lambda: "event=job_api_recovered call=job-take" in worker.log)
    for private in PRIVATE:
        assert private not in worker.log


def worker_logged(worker: Worker, text: str) -> bool:
    return text in worker.log


class LateApi:
    """A client of the job API whose answer comes after the worker was told to stop."""

    def __init__(self) -> None:
        self.delivered: list[str] = []
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def take(self, count: int, stopping: asyncio.Event) -> list[dict[str, Any]]:
        self.asked.set()
        await self.answer.wait()
        return [{"id": "late", "input": {}}]

    async def stop_signals(self) -> AsyncIterator[str]:
        nothing: list[str] = []
        for job_id in nothing:
            yield job_id

    async def deliver(self, job: dict[str, Any], result: dict[str, Any]) -> None:
        self.delivered.append(job["id"])


async def do(job: dict[str, Any]) -> dict[str, Any]:
    return {}


async def test_a_job_that_comes_with_the_signal_to_stop_is_done() -> None:
    api = LateApi()
    loop = JobLoop(cast(Client, api), do, 2, grace_s=60)
    running = asyncio.ensure_future(loop.run())
    await api.asked.wait()
    loop.stop()
    await asyncio.sleep(0.01)
    api.answer.set()
    async with asyncio.timeout(LIMIT_S):
        await running
    assert api.delivered == ["late"]


async def test_an_answer_that_does_not_come_is_not_waited_for_long() -> None:
    api = LateApi()
    loop = JobLoop(cast(Client, api), do, 2, grace_s=0)
    running = asyncio.ensure_future(loop.run())
    await api.asked.wait()
    loop.stop()
    async with asyncio.timeout(LIMIT_S):
        await running
    assert api.delivered == []


async def test_a_pause_is_no_reason_to_stop_late(
    api: JobApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{api.url}/nothing/is/here?gpu=G")
    backoff = Backoff(first_s=LIMIT_S, longest_s=LIMIT_S)
    async with sdk.AsyncClientSession() as session:
        client = Client(session, Patience(backoff))
        loop = JobLoop(client, do, 2, grace_s=LIMIT_S)
        running = asyncio.ensure_future(loop.run())
        # The first poll fails, and the pause after it is as long as the whole test may take.
        await asyncio.sleep(0.5)
        loop.stop()
        started = time.monotonic()
        await running
    assert time.monotonic() - started < LIMIT_S / 2
