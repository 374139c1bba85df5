"""A stand-in for RunPod's job API, as far as a worker sees it."""

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

POLL_S = 5.0
# Ends a test that has failed; nothing is measured by it.
LIMIT_S = 600.0
ENDPOINT = "v2/endpoint"


@dataclass(frozen=True)
class Post:
    """What a worker posted for a job, with the status it was answered."""

    job: str
    kind: str  # progress, result or stream
    body: dict[str, Any]
    size: int
    status: int
    at: float


@dataclass
class JobApi:
    """Hands out the jobs that a test submits, and keeps whatever a worker posts.

    refuse: gives the status and the text to answer a post with; None: the post is taken
    """

    refuse: Callable[[Post], tuple[int, str] | None] = lambda post: None
    posts: list[Post] = field(default_factory=list)
    calls: list[tuple[str, float]] = field(default_factory=list)
    pings: list[dict[str, str]] = field(default_factory=list)
    taken: dict[str, float] = field(default_factory=dict)
    url: str = ""

    def __post_init__(self) -> None:
        self._waiting: list[Any] = []
        self._stops: list[str] = []
        self._numbers: dict[str, int] = defaultdict(int)
        self._changed = threading.Condition()

    def submit(self, *inputs: Any, prefix: str = "job") -> list[str]:
        """Put jobs with these inputs into the queue; gives their ids."""
        jobs = []
        for job_input in inputs:
            self._numbers[prefix] += 1
            name = f"{prefix}-{self._numbers[prefix]}"
            jobs.append({"id": name, "input": job_input})
        self.put(*jobs)
        return [job["id"] for job in jobs]

    def put(self, *jobs: Any) -> None:
        """Put jobs into the queue as they are."""
        with self._changed:
            self._waiting += jobs

    def cancel(self, job: str) -> None:
        """Signal the worker to stop a job."""
        with self._changed:
            self._stops.append(job)

    def results(self, *jobs: str, timeout_s: float = LIMIT_S) -> list[dict[str, Any]]:
        """The final posts that were taken for these jobs; waits until all of them are there."""
        self.wait_until(lambda: all(self._final(job) for job in jobs), timeout_s)
        return [self._final(job)[0].body for job in jobs]

    def of(self, job: str, kind: str | None = None) -> list[Post]:
        return [p for p in self.posts if p.job == job and kind in (None, p.kind)]

    def wait_until(self, holds: Callable[[], Any], timeout_s: float = LIMIT_S) -> None:
        with self._changed:
            if not self._changed.wait_for(holds, timeout_s):
                raise TimeoutError(
                    f"posts so far: {[(p.job, p.kind) for p in self.posts]}"
                )

    def environment(self) -> dict[str, str]:
        """What RunPod sets in a worker's container."""
        base = f"{self.url}/{ENDPOINT}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=G",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=G",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=G",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=G",
            "RUNPOD_PING_INTERVAL": "200",
            "RUNPOD_POD_ID": "pod-of-the-test",
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_AI_API_KEY": "secret-key-of-the-test",
        }

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(started,), daemon=True
        )
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _final(self, job: str) -> list[Post]:
        return [p for p in self.of(job, "result") if p.status == 200]

    def _serve(self, started: threading.Event) -> None:
        async def serve() -> None:
            app = web.Application(client_max_size=1 << 30)
            app.add_routes(
                [
                    web.get(f"/{ENDPOINT}/job-take/{{pod}}", self._take),
                    web.get(f"/{ENDPOINT}/job-take-batch/{{pod}}", self._take),
                    web.get(f"/{ENDPOINT}/job-stop/{{pod}}", self._job_stop),
                    web.post(f"/{ENDPOINT}/job-done/{{pod}}/{{job}}", self._posted),
                    web.post(f"/{ENDPOINT}/job-stream/{{pod}}/{{job}}", self._posted),
                    web.get(f"/{ENDPOINT}/ping/{{pod}}", self._ping),
                ]
            )
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            port = int(self.url.rpartition(":")[2]) if self.url else 0
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(serve())

    async def _take(self, request: web.Request) -> web.Response:
        batch = "job-take-batch" in request.path
        count = int(request.query.get("batch_size", 1))
        self.calls.append(("batch" if batch else "take", time.monotonic()))
        jobs = await self._poll(self._waiting, count)
        if not jobs:
            return web.Response(status=204)
        for job in jobs:
            # A test may submit what is no job.
            if isinstance(job, dict):
                self.taken[str(job.get("id"))] = time.monotonic()
        return web.json_response(jobs if batch else jobs[0])

    async def _job_stop(self, _: web.Request) -> web.Response:
        self.calls.append(("stop", time.monotonic()))
        stops = await self._poll(self._stops, 100)
        if not stops:
            return web.Response(status=204)
        return web.json_response({"jobsToStop": stops})

    async def _poll(self, source: list[Any], count: int) -> list[Any]:
        end = time.monotonic() + POLL_S
        while time.monotonic() < end:
            with self._changed:
                if source:
                    found, source[:] = source[:count], source[count:]
                    return found
            await asyncio.sleep(0.02)
        return []

    async def _posted(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = json.loads(raw)
        job = request.match_info["job"]
        kind = "stream" if "job-stream" in request.path else "result"
        if body.get("status") == "IN_PROGRESS":
            kind = "progress"
        answer = self.refuse(Post(job, kind, body, len(raw), 200, time.monotonic()))
        status, text = answer or (200, "")
        with self._changed:
            post = Post(job, kind, body, len(raw), status, time.monotonic())
            self.posts.append(post)
            self._changed.notify_all()
        return web.Response(status=status, text=text)

    async def _ping(self, request: web.Request) -> web.Response:
        with self._changed:
            self.pings.append(dict(request.query))
            self._changed.notify_all()
        return web.Response()
