"""The RunPod worker as its container runs it: RunPod's SDK, Ray, the application, real speech.

One worker does nearly all of it; the last test that uses this worker ends it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests

from deployments.local import loopback
from tests.support.app import DEAD_PROXY, LONG_AND_LIGHT, repeated
from tests.support.job_api import LIMIT_S, JobApi
from tests.support.runpod_process import ROOT, Worker, running_worker
from tools.official import assert_equals_official, official
from tools.weights import weights_environment

# Four jobs of this kind are still in work when a process is killed; their results fit the limit.
LONG_ENOUGH = repeated(3) | {"word_timestamps": False}

# Between the results of two minutes with tokens and without.
RESULT_LIMIT = 8_400


@pytest.fixture(scope="module")
def health_port() -> int:
    return loopback.free_port("127.0.0.1")


@pytest.fixture(scope="module")
def http_port() -> int:
    return loopback.free_port("127.0.0.1")


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory,
    health_port: int,
    http_port: int,
    audio_url: Callable[[str], str],
    long_recording: str,
) -> Iterator[Worker]:
    log = tmp_path_factory.mktemp("worker") / "log"
    with running_worker(
        log,
        audio_url(""),
        long_recording,
        PORT_HEALTH=str(health_port),
        WHISPER_HTTP_PORT=str(http_port),
        API_KEYS="none",
        WHISPER_BEAM_SIZE="2e+00",
        WHISPER_WORD_TIMESTAMPS="True",
        WHISPER_LANGUAGE="",
        WHISPER_MAX_RESULT_BYTES=str(RESULT_LIMIT),
    ) as worker:
        yield worker
    for private in ("secret-key-of-the-test", "fellow Americans", "http://127.0.0.1:"):
        assert private not in worker.log
    assert "Traceback" not in worker.log
    assert worker.log.startswith("event=gpu cards=")


def ping(port: int) -> int:
    try:
        return requests.get(
            f"http://127.0.0.1:{port}/ping", timeout=LIMIT_S
        ).status_code
    except requests.ConnectionError:
        return 0


def slots_in_use(http_port: int) -> int:
    """Slots of the worker's model; 0 while the model is loading."""
    models = requests.get(
        f"http://127.0.0.1:{http_port}/models", timeout=LIMIT_S
    ).json()["data"]
    [used] = {model["slots_in_use"] for model in models if model["default"]}
    return used or 0


def output(worker: Worker, job: str) -> dict[str, Any]:
    [result] = worker.api.results(job)
    assert "error" not in result, result
    answer: dict[str, Any] = result["output"]
    return answer


def test_a_job_gives_what_official_gives_with_the_environments_defaults(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    [job] = worker.api.submit({"audio": audio_url("jfk.flac")})
    answer = output(worker, job)
    expected = official("tiny.en", "jfk.flac", beam_size=2, word_timestamps=True)
    assert_equals_official(answer, expected)
    assert answer["model"] == "tiny.en"
    assert answer["request_id"] == job


def test_what_a_job_asks_for_comes_before_the_environments_defaults(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    request = {"audio": audio_url("jfk.flac"), "beam_size": 5, "word_timestamps": False}
    [job] = worker.api.submit(request)
    assert_equals_official(output(worker, job), official("tiny.en", "jfk.flac"))


def test_a_job_may_ask_for_chunks_and_silence_stays_silent(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    names = ("silence.wav", "jfk.flac")
    jobs = worker.api.submit(
        *(
            {"audio": audio_url(name), "chunking_strategy": "auto", "beam_size": None}
            for name in names
        )
    )
    silence, speech = (output(worker, job) for job in jobs)
    assert (silence["transcription"], silence["segments"]) == ("", [])
    assert silence["chunks"] == []
    assert silence["warnings"][-1].startswith("chunking_strategy: no speech was found")
    [chunk] = speech["chunks"]
    assert 0 <= chunk["start"] < chunk["end"] <= speech["duration"]
    assert "fellow Americans" in speech["transcription"]


def test_of_many_concurrent_jobs_each_gets_its_own_answer(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    good = [{"audio": audio_url(name)} for name in ("jfk.flac", "sonnet.ogg") * 4]
    bad = {
        "Missing required parameter: 'audio' (URL to audio file)": {},
        "The job's input must be a JSON object": "jfk.flac",
        "Invalid stream: must be true or false": {"audio": "x", "stream": 2},
        "Invalid model: 'giant'. Valid models: tiny.en,": {
            "audio": "x",
            "model": "giant",
        },
        "Audio download failed: HTTP 404": {"audio": audio_url("none.wav")},
        "Audio decoding failed: ": {"audio": audio_url("ffmpeg.npz")},
    }
    jobs = worker.api.submit(*good, *bad.values())
    results = worker.api.results(*jobs)
    texts = [result["output"]["transcription"] for result in results[: len(good)]]
    assert all("fellow Americans" in text for text in texts[::2])
    assert len(set(texts)) == 2
    for result, text in zip(results[len(good) :], bad, strict=True):
        assert set(result) == {"error"}
        assert result["error"].startswith(text)
        assert "127.0.0.1" not in result["error"]


def test_segments_are_streamed_before_the_whole_result(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    request = {"audio": audio_url("gettysburg.wav"), "word_timestamps": False}
    streamed, other = worker.api.submit(request | {"stream": True}, request)
    answer = output(worker, streamed)
    posts = worker.api.of(streamed)
    assert [post.kind for post in posts if post.kind != "progress"][-1] == "result"
    streamed_segments = [
        event["segment"]
        for post in worker.api.of(streamed, "stream")
        for event in post.body["output"]["events"]
        if event["event"] == "segment"
    ]
    assert streamed_segments == answer["segments"]
    assert output(worker, other)["transcription"] == answer["transcription"]
    assert not worker.api.of(other, "stream")


def test_a_job_may_hold_a_call_of_openais_api(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    fields = {"url": audio_url("jfk.flac"), "model": "whisper-1", "stream": True}
    call = {"openai_route": "/v1/audio/transcriptions", "openai_input": fields}
    job, models = worker.api.submit(call, {"openai_route": "/v1/models"})
    text = output(worker, job)["text"]
    assert "fellow Americans" in text
    pieces = [post.body["output"] for post in worker.api.of(job, "stream")]
    *messages, last, end = "".join(pieces).split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    assert json.loads(messages[-1].removeprefix("data: "))["text"] == text
    listed = output(worker, models)["data"]
    assert "tiny.en" in [model["id"] for model in listed]


def test_a_result_over_the_limit_loses_its_tokens_and_says_so(
    worker: Worker, long_recording: str
) -> None:
    request = LONG_AND_LIGHT | {"audio": long_recording, "clip_timestamps": "0,120"}
    [job] = worker.api.submit(request | {"word_timestamps": False})
    answer = output(worker, job)
    assert any("tokens are left out" in warning for warning in answer["warnings"])
    assert not any("tokens" in segment for segment in answer["segments"])


@pytest.mark.slow
def test_progress_is_reported_in_order_and_never_after_the_result(
    worker: Worker, long_recording: str
) -> None:
    # Longer than the limit allows, also without tokens.
    jobs = worker.api.submit(*[LONG_AND_LIGHT | {"audio": long_recording}] * 2)
    for result in worker.api.results(*jobs):
        assert "transcribe the recording without word_timestamps" in result["error"]
    for job in jobs:
        posts = worker.api.of(job)
        assert [post.kind for post in posts][-1] == "result"
        reports = [post.body["output"] for post in posts[:-1]]
        assert {"stage", "audio_seconds"} <= set(reports[-1])
        progress = [report for report in reports if "progress_percent" in report]
        assert progress
        done = [report["audio_seconds_done"] for report in progress]
        assert done == sorted(set(done))
        for report in progress:
            assert report["audio_seconds"] == 605
            percent = 100 * report["audio_seconds_done"] / 605
            assert report["progress_percent"] == pytest.approx(percent, abs=0.1)


def test_a_cancelled_job_frees_its_slot_and_posts_nothing_more(
    worker: Worker, long_recording: str, audio_url: Callable[[str], str], http_port: int
) -> None:
    [job] = worker.api.submit({"audio": long_recording})
    worker.wait_until(lambda: slots_in_use(http_port) == 1)
    worker.api.cancel(job)
    worker.wait_until(lambda: slots_in_use(http_port) == 0)
    worker.wait_until(
        lambda: f"request_id={job} model=tiny.en status=499" in worker.log
    )
    posts = len(worker.api.of(job))
    output(worker, worker.api.submit({"audio": audio_url("jfk.flac")})[0])
    assert len(worker.api.of(job)) == posts
    assert not worker.api.of(job, "result")


def test_the_http_door_is_open_where_it_is_asked_for(
    worker: Worker, http_port: int, audio_url: Callable[[str], str]
) -> None:
    answer = requests.post(
        f"http://127.0.0.1:{http_port}/transcribe",
        json={"audio": audio_url("jfk.flac")},
        timeout=LIMIT_S,
    )
    assert answer.json()["model"] == "tiny.en"


def test_the_health_port_tells_that_it_is_ready(
    worker: Worker, health_port: int
) -> None:
    assert ping(health_port) == 200


# One call of each of Ray's services that a stranger might try.
GRPC_CALLS = [
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/ReportOCMetrics",
    "/ray.serve.ASGIService/HandleRequest",
]


def test_every_port_but_the_wanted_ones_demands_the_token(
    worker: Worker, health_port: int, http_port: int
) -> None:
    ports = {
        connection.laddr.port
        for pid in worker.pids()
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ports) > 8
    assert {port for port in ports if not demands_token(port)} == {
        health_port,
        http_port,
    }


def demands_token(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/"
        return requests.get(url, timeout=LIMIT_S).status_code == 401
    except requests.ConnectionError:
        pass  # It speaks HTTP/2.
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answers = set()
        for name in GRPC_CALLS:
            try:
                channel.unary_unary(name)(b"", timeout=LIMIT_S)
                answers.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                answers.add(error.code())
    known = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
    return grpc.StatusCode.UNAUTHENTICATED in answers and answers <= known


def four_in_work(worker: Worker, http_port: int, request: dict[str, Any]) -> list[str]:
    jobs = worker.api.submit(*[request] * 4)
    worker.wait_until_taken(jobs)
    worker.wait_until(lambda: slots_in_use(http_port) > 0)
    return jobs


def assert_done_or_told(results: list[dict[str, Any]], error: str) -> None:
    """Each job is tried once more, and ends with the error if that fails; at least one succeeds."""
    done = ["output" in result for result in results]
    assert any(done), results
    for result in results:
        assert "output" in result or result["error"].startswith(error)


def test_after_the_models_death_every_job_ends_and_the_next_one_works(
    worker: Worker, audio_url: Callable[[str], str], http_port: int
) -> None:
    request = LONG_ENOUGH | {"audio": audio_url("gettysburg.wav")}
    jobs = four_in_work(worker, http_port, request)
    # While the replica works, its process shows only what follows the last dot of its name.
    worker.kill(r"^ray::(ServeReplica:whisper:whisper-tiny\.)?en")
    assert_done_or_told(worker.api.results(*jobs), "Model 'tiny.en' is not available: ")
    assert output(worker, worker.api.submit(request)[0])["transcription"]


def test_after_the_routers_death_every_job_ends_and_the_next_one_works(
    worker: Worker, audio_url: Callable[[str], str], http_port: int
) -> None:
    request = LONG_ENOUGH | {"audio": audio_url("gettysburg.wav")}
    jobs = four_in_work(worker, http_port, request)
    worker.kill("ray::ServeReplica:whisper:Router")
    assert_done_or_told(worker.api.results(*jobs), "The service lost this job while")
    assert output(worker, worker.api.submit(request)[0])["transcription"]


def test_after_sigterm_jobs_in_work_are_finished_and_nothing_is_left_running(
    worker: Worker, audio_url: Callable[[str], str]
) -> None:
    jobs = worker.api.submit(*[{"audio": audio_url("gettysburg.wav")}] * 4)
    worker.wait_until_taken(jobs)
    assert worker.pids()
    worker.process.terminate()
    assert worker.process.wait(LIMIT_S) == 0, worker.log
    results = worker.api.results(*jobs, timeout_s=0)
    assert all("score and seven" in r["output"]["transcription"] for r in results)
    worker.wait_until(lambda: not worker.pids())


@pytest.mark.slow
def test_the_health_port_is_up_before_anything_else_and_sigterm_ends_the_start(
    tmp_path: Path,
) -> None:
    port = loopback.free_port("127.0.0.1")
    with JobApi() as api:
        worker = Worker(api, tmp_path / "log", PORT_HEALTH=str(port))
        try:
            worker.wait_until(lambda: ping(port) == 204)
            assert not worker.pids("gcs_server")
            # The replica is about to load the model, and ray.init has replaced SIGTERM's handler.
            worker.wait_until(lambda: worker.pids("^ray::ServeReplica"))
            assert ping(port) == 204
            worker.process.terminate()
            assert worker.process.wait(LIMIT_S) == 0, worker.log
            worker.wait_until(lambda: not worker.pids())
            assert not api.calls
        finally:
            worker.process.kill()
            worker.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("process", ["gcs_server", "raylet/raylet"])
def test_when_ray_dies_jobs_in_work_fail_clearly_and_so_does_the_worker(
    tmp_path: Path, long_recording: str, process: str
) -> None:
    with running_worker(tmp_path / "log", long_recording) as worker:
        jobs = worker.api.submit(*[{"audio": long_recording}] * 2)
        worker.wait_until_taken(jobs)
        time.sleep(2)
        worker.kill(process)
        results = worker.api.results(*jobs)
        assert worker.process.wait(LIMIT_S) == 1, worker.log
        worker.wait_until(lambda: not worker.pids())
    text = "The worker's service has died during this job: send the job again"
    assert results == [{"error": text}] * 2
    assert "event=service_died" in worker.log


def run_worker(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a worker without a job API until it ends."""
    return subprocess.run(
        [sys.executable, *(arguments or ["-m", "deployments.runpod"])],
        env=os.environ | weights_environment() | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.slow
def test_the_job_of_test_input_json_is_done_by_the_hubs_handler() -> None:
    done = run_worker(".runpod/handler.py", WHISPER_MODEL="tiny.en")
    assert done.returncode == 0, done.stderr
    assert "completed successfully" in done.stdout
    assert "my fellow" in done.stdout or "I fellow" in done.stdout


@pytest.mark.slow
def test_a_test_job_that_fails_ends_with_status_1() -> None:
    job = json.dumps({"input": {"audio": "ftp://example.com/x"}})
    done = run_worker(
        *("-m", "deployments.runpod", "--test_input", job),
        WHISPER_MODEL="tiny.en",
    )
    assert done.returncode == 1
    assert "Audio download failed: only http and https can be fetched" in done.stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WHISPER_BEAM_SIZE": "99"},
            "WHISPER_BEAM_SIZE must be an integer between 1 and 10",
        ),
        ({"PORT_HEALTH": "high"}, "PORT_HEALTH must be a whole number"),
    ],
)
def test_a_wrong_environment_ends_the_worker_at_once(
    environment: dict[str, str], message: str
) -> None:
    done = run_worker(**environment)
    assert done.returncode == 1
    gpu, error = done.stderr.splitlines()
    assert gpu.startswith("event=gpu ")
    assert error.startswith(f"error: {message}")


@pytest.mark.slow
def test_a_preloaded_model_that_cannot_be_loaded_ends_the_worker(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.pt").write_bytes(b"PK\x03\x04 not a checkpoint" * 1000)
    done = run_worker(WHISPER_MODEL="tiny", WHISPER_CHECKPOINT_DIR=str(tmp_path))
    assert done.returncode == 1
    # Lines of the replica's log may come after ours.
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1
    assert ours[0].startswith(
        "error: Model 'tiny' is not available: tiny.pt is corrupt "
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("giant", "WHISPER_MODEL: Invalid model: 'giant'. Valid models: tiny.en,"),
        ("medium", "the weights of 'medium' are not on this machine"),
    ],
)
def test_a_model_that_cannot_be_had_ends_the_worker_with_a_reason(
    tmp_path: Path, model: str, message: str
) -> None:
    done = run_worker(
        WHISPER_MODEL=model,
        WHISPER_CHECKPOINT_DIR=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path),
        HTTPS_PROXY=DEAD_PROXY,
        https_proxy=DEAD_PROXY,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
