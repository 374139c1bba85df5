"""Every failure has a clear answer and leaves other requests alone."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import ray
import requests
import torch
from ray import serve

from deployments.app import build_app
from deployments.config import AppArgs, ModelArgs
from deployments.router.start_failure import load_failure
from tests.support.app import (
    ENDLESS,
    App,
    Url,
    calling,
    random_checkpoint,
    repeated,
    replica_pids,
    session_logs,
    wait_for,
)
from tests.support.misbehaving_server import Connection, MisbehavingServer
from tools.official import official

NOBODY_LISTENS = "http://127.0.0.1:9"
# Serve looks back over a period of its own before it stops the last replica.
SCALE_DOWN_S = 600
# The replica is killed as soon as both requests have their slots, long before this much work is
# done.
REPEATS = 6


@pytest.mark.parametrize(
    ("request_fields", "status", "text"),
    [
        ({}, 422, "Missing required parameter: 'audio' (URL to audio file)"),
        (
            {"audio": ""},
            422,
            "Invalid 'audio' parameter: must be a non-empty string URL",
        ),
        (
            {"audio": 7},
            422,
            "Invalid 'audio' parameter: must be a non-empty string URL",
        ),
        (
            {"audio": "x", "temperature": 2},
            422,
            "Invalid temperature: must be between 0 and 1",
        ),
        (
            {"audio": "x", "beam_size": 0},
            422,
            "Invalid beam_size: must be an integer between 1 and 10",
        ),
        (
            {"audio": "x", "model": "tiny.en", "language": "pt"},
            422,
            "Invalid language: model 'tiny.en' knows English only",
        ),
        (
            {"audio": f"{NOBODY_LISTENS}/a.mp3?signature=SECRET"},
            502,
            "Audio download failed: connection refused",
        ),
        (
            {"audio_base64": "bm8gYXVkaW8="},
            422,
            (
                "Audio decoding failed: the file is not audio or video of a known kind,"
                " or it is damaged. Raw audio without a header has to be put into a container,"
                " such as WAV"
            ),
        ),
    ],
)
def test_errors_of_the_contract(
    app: App, request_fields: dict[str, object], status: int, text: str
) -> None:
    response = app.post(**request_fields)
    assert (response.status_code, response.json()["error"]) == (status, text)
    assert set(response.json()) == {"error", "type"}


def test_an_unknown_model_is_refused_before_anything_is_fetched(app: App) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.wav"
        response = app.post(audio=url, model="huge")
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
    assert response.status_code == 422
    error = response.json()["error"]
    assert error.startswith("Invalid model: 'huge'. Valid models: tiny.en, tiny, ")
    assert error.endswith("large, large-v3-turbo")


def test_a_missing_file_is_the_urls_fault(app: App, audio_url: Url) -> None:
    response = app.post(audio=audio_url("nothing.wav"))
    assert response.status_code == 422
    assert response.json() == {
        "error": "Audio download failed: HTTP 404 Not Found",
        "type": "audio_url_error",
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 422), (b"[]", 422), (b"\xff", 422), (b"[" * 100_000, 422)],
)
def test_a_body_that_is_no_request(app: App, body: bytes, status: int) -> None:
    response = requests.post(f"{app.url}/transcribe", data=body, timeout=30)
    assert response.status_code == status
    assert response.json()["type"] == "invalid_request"


def test_a_body_larger_than_any_request_is_refused(app: App) -> None:
    body = b'{"audio_base64": "' + b"A" * (50 << 20) + b'"}'
    response = requests.post(f"{app.url}/transcribe", data=body, timeout=60)
    assert response.status_code == 413
    assert response.json()["type"] == "request_too_large"


def test_unknown_paths_and_methods_answer_in_the_same_form(app: App) -> None:
    missing = requests.get(f"{app.url}/nothing", timeout=10)
    assert (missing.status_code, missing.json()["type"]) == (404, "not_found")
    wrong = requests.get(f"{app.url}/transcribe", timeout=10)
    assert (wrong.status_code, wrong.json()["type"]) == (405, "method_not_allowed")


def test_a_model_without_weights_says_so_and_works_once_they_are_there(
    app: App, audio_url: Url
) -> None:
    request = {
        "audio": audio_url("jfk.flac"),
        "model": "tiny",
        "language": "en",
        "clip_timestamps": "0,2",
        "beam_size": None,
        "temperature_increment_on_fallback": None,
    }
    failed = app.post(**request)
    assert failed.status_code == 503
    assert failed.json()["type"] == "model_unavailable"
    assert "OpenAI's server cannot be reached" in failed.json()["error"]
    assert app.transcribe(audio=audio_url("silence.wav"))["model"] == "base"

    shape = {"n_mels": 80, "n_vocab": 51865, "n_audio_layer": 4, "n_text_layer": 4}
    shape |= {"n_audio_state": 384, "n_text_state": 384}
    shape |= {"n_audio_head": 6, "n_text_head": 6}
    random_checkpoint(app.checkpoints / "tiny.pt", **shape)
    assert app.transcribe(**request)["model"] == "tiny"


def test_a_corrupt_checkpoint_is_reported_each_time(app: App, audio_url: Url) -> None:
    for _ in range(2):
        response = app.post(audio=audio_url("silence.wav"), model="corrupt")
        assert response.status_code == 503
        error = response.json()["error"]
        assert "'corrupt.pt' is not a Whisper checkpoint" in error


@pytest.mark.slow
def test_own_weights_with_large_v3s_input_and_vocabulary_come_and_go(
    app: App, audio_url: Url
) -> None:
    request = {
        "audio": audio_url("jfk.flac"),
        "model": "random-v3",
        "language": "yue",
        "beam_size": None,
        "temperature_increment_on_fallback": None,
        "word_timestamps": True,
    }
    answer = app.transcribe(**request)
    assert answer["model"] == "random-v3"
    assert answer["detected_language"] == "yue"

    def running() -> int:
        return int(app.model("random-v3")["running_replicas"])

    assert running() == 1
    wait_for(lambda: running() == 0, SCALE_DOWN_S)
    assert app.transcribe(**request)["segments"] == answer["segments"]


class Occupant:
    """Holds a share of the GPU."""

    def ping(self) -> None:
        """Answers when it has the share."""


def test_a_model_without_a_free_share_of_a_gpu_says_so_soon(
    crowded: App, audio_url: Url
) -> None:
    occupant: Any = ray.remote(num_cpus=0, num_gpus=0.6)(Occupant)
    occupant = occupant.remote()
    ray.get(occupant.ping.remote())
    try:
        response = crowded.post(audio=audio_url("silence.wav"), model="second")
    finally:
        ray.kill(occupant)
    assert response.status_code == 503
    assert response.json()["error"] == (
        "Model 'second' is not available: no free share of a GPU"
        " (it needs 0.6 of one) within 10 s"
    )


WITHOUT_CUDA = pytest.mark.skipif(
    torch.version.cuda is not None, reason="PyTorch can use a GPU here"
)
NO_CUDA = f"this build of PyTorch ({torch.__version__}) has no CUDA"


@pytest.mark.slow
@WITHOUT_CUDA
def test_a_model_that_could_not_be_loaded_gives_its_share_of_the_gpu_back(
    crowded: App, audio_url: Url
) -> None:
    def tells_its_reason(model: str) -> bool:
        response = crowded.post(audio=audio_url("silence.wav"), model=model)
        assert response.status_code == 503
        error = str(response.json()["error"])
        return error == f"Model '{model}' is not available: {NO_CUDA}"

    # There is room for one of the two.
    wait_for(lambda: tells_its_reason("first"))
    wait_for(lambda: tells_its_reason("second"))
    wait_for(lambda: ray.available_resources().get("GPU") == 1)


@pytest.mark.slow
@WITHOUT_CUDA
def test_a_preloaded_model_that_could_not_be_loaded_tells_its_reason(
    app: App, audio_url: Url
) -> None:
    model = ModelArgs(name="base", gpu_share=0.1)
    args = AppArgs(
        models=[model], device="cuda", gpu_memory_gb=24, allow_private_networks=True
    )
    with pytest.raises(RuntimeError):
        serve.run(build_app(args), name="broken", route_prefix="/broken")
    broken = App(f"{app.url}/broken", app.checkpoints)
    response = broken.post(audio=audio_url("silence.wav"))
    assert response.json() == {
        "error": f"Model 'base' is not available: {NO_CUDA}",
        "type": "model_unavailable",
    }
    assert load_failure(model, "broken") == NO_CUDA
    serve.delete("broken")


def test_a_request_that_takes_too_long_is_answered_with_the_limit(
    impatient: App, audio_url: Url
) -> None:
    response = impatient.post(audio=audio_url("gettysburg.wav"), **ENDLESS)
    assert response.status_code == 504
    assert response.json()["error"] == (
        "The request took longer than the limit of 1 s (request_timeout_s)"
    )


def test_too_many_waiting_requests_are_refused_at_once(
    impatient: App, audio_url: Url
) -> None:
    let_go = threading.Event()
    with MisbehavingServer() as server, ThreadPoolExecutor(1) as threads:
        server.answer(held_back(let_go))
        admitted = threads.submit(impatient.post, audio=server.url())
        wait_for(lambda: server.requests)
        refused = [impatient.post(audio=audio_url("silence.wav")) for _ in range(3)]
        assert not admitted.done()
        let_go.set()
        assert admitted.result().json()["type"] == "audio_host_error"
    for response in refused:
        assert response.status_code == 503
        assert response.json()["error"].startswith("Too many requests wait")


def held_back(let_go: threading.Event) -> Callable[[Connection], None]:
    """A server's answer that does not come before the event."""

    def answer(connection: Connection) -> None:
        connection.request()
        let_go.wait(60)

    return answer


def test_a_caller_cannot_set_a_limit_of_serves_own_proxy(
    app: App, audio_url: Url
) -> None:
    response = requests.post(
        f"{app.url}/transcribe",
        json={"audio": audio_url("jfk.flac"), "model": "tiny.en"},
        # Less than any transcription takes.
        headers={"x-request-timeout-seconds": "0.001"},
        timeout=300,
    )
    assert response.status_code == 200


def test_work_ends_with_its_caller_although_the_caller_asks_otherwise(
    app: App, audio_url: Url
) -> None:
    def in_use() -> int:
        return int(app.model("tiny.en")["slots_in_use"] or 0)

    request = {"audio": audio_url("gettysburg.wav"), "model": "tiny.en"} | ENDLESS
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    headers = {"x-request-disconnect-disabled": "?1"}
    connection.request("POST", "/transcribe", json.dumps(request), headers)
    try:
        wait_for(lambda: in_use() == 1)
    finally:
        connection.close()
    wait_for(lambda: in_use() == 0)


def test_a_killed_router_is_told_to_its_callers_and_replaced(
    impatient: App, audio_url: Url
) -> None:
    let_go = threading.Event()
    [pid] = replica_pids("Router", "impatient")
    with MisbehavingServer() as server, ThreadPoolExecutor(1) as threads:
        server.answer(held_back(let_go))
        lost = threads.submit(impatient.post, audio=server.url())
        wait_for(lambda: server.requests)
        os.kill(pid, signal.SIGKILL)
        response = lost.result()
        let_go.set()
    assert response.status_code == 503
    assert response.json() == {
        "error": "The service stopped while it worked on this request; send it again",
        "type": "service_unavailable",
    }
    assert int(response.headers["retry-after"]) > 0
    [log] = session_logs().glob("serve/proxy_*.log")
    request_id = response.headers["x-request-id"]
    line = f"request_id={request_id} model=- status=503 reason=service_unavailable"
    wait_for(lambda: line in log.read_text())
    assert requests.get(f"{impatient.url}/health", timeout=60).ok


def test_limits_of_size_and_duration(impatient: App, audio_url: Url) -> None:
    large = impatient.post(audio=audio_url("jfk.flac"))
    assert large.status_code == 422
    assert "larger than the limit" in large.json()["error"]
    assert "max_download_bytes" in large.json()["error"]
    long = impatient.post(audio=audio_url("declaracao.ogg"))
    assert long.status_code == 422
    assert "longer than the limit of 0:00:15 (max_audio_s: 15)" in long.json()["error"]


def test_a_killed_replica_costs_its_callers_no_answer(app: App, audio_url: Url) -> None:
    app.transcribe(audio=audio_url("silence.wav"), model="tiny.en")
    request = {"audio": audio_url("gettysburg.wav"), "model": "tiny.en"}
    request |= repeated(REPEATS)
    [pid] = replica_pids("whisper-tiny.en")
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(app.transcribe, **request) for _ in range(2)]
        wait_for(lambda: app.model("tiny.en")["slots_in_use"] == 2)
        os.kill(pid, signal.SIGKILL)
        assert not any(answer.done() for answer in answers)
    once = official("tiny.en", "gettysburg.wav", clip_timestamps="0,10")["segments"]
    for answer in answers:
        segments = answer.result()["segments"]
        texts = [segment["text"] for segment in segments]
        assert texts == [segment["text"].strip() for segment in once] * REPEATS


@pytest.mark.slow
def test_a_recording_with_which_two_replicas_die_is_refused(
    app: App, audio_url: Url
) -> None:
    app.transcribe(audio=audio_url("silence.wav"), model="tiny.en")
    request = {"audio": audio_url("coxinha.wav"), "model": "tiny.en"}

    def working() -> list[int]:
        """The replica that works on the request, and none while it has just died."""
        in_use = app.model("tiny.en")["slots_in_use"]
        return replica_pids("whisper-tiny.en") if in_use else []

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(app.post, **request, **ENDLESS)
        for _ in range(2):
            wait_for(working)
            [replica] = map(psutil.Process, working())
            replica.kill()
            replica.wait(60)
        response = answer.result()
    assert response.status_code == 422
    assert response.json() == {
        "error": "2 replicas of model 'tiny.en' have died while they worked on this recording,"
        " so it is refused for 10 minutes",
        "type": "harmful_audio",
    }
    assert app.post(**request).json()["type"] == "harmful_audio"
    assert app.post(audio=audio_url("silence.wav"), model="tiny.en").ok


def test_a_busy_application_still_answers_health(app: App, audio_url: Url) -> None:
    def in_use() -> int:
        return int(app.model("tiny.en")["slots_in_use"] or 0)

    with calling(app, audio=audio_url("gettysburg.wav"), model="tiny.en", **ENDLESS):
        wait_for(lambda: in_use() == 1)
        assert requests.get(f"{app.url}/health", timeout=60).ok
        assert in_use() == 1
    wait_for(lambda: in_use() == 0)


def test_a_model_with_more_requests_than_it_accepts_still_tells_of_its_slots(
    app: App, audio_url: Url
) -> None:
    request = {"audio": audio_url("gettysburg.wav"), "model": "tiny.en"} | ENDLESS

    def use() -> tuple[int | None, int | None]:
        model = app.model("tiny.en")
        return model["slots_in_use"], model["windows_waiting"]

    with contextlib.ExitStack() as callers:
        for _ in range(20):
            callers.enter_context(calling(app, **request))
        # Eight windows decode, and the next eight are there; four requests wait in the Router.
        wait_for(lambda: use() == (8, 8))
    wait_for(lambda: use() == (0, 0))
