"""Streams of events over HTTP, and callers who leave while the work goes on."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import ray
import requests
from ray import serve
from ray.util import list_named_actors

from tests.support.app import (
    ENDLESS,
    App,
    Url,
    calling,
    session_logs,
    wait_for,
)
from tools.official import assert_official


def streamed(app: App, **request: Any) -> list[dict[str, Any]]:
    """The events of a request that must succeed."""
    response = requests.post(
        f"{app.url}/transcribe",
        json=request,
        headers={"Accept": "text/event-stream"},
        timeout=300,
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_a_stream_tells_the_stages_in_order_and_ends_with_the_answer(
    app: App, audio_url: Url
) -> None:
    request = {
        "audio": audio_url("jfk.flac"),
        "model": "tiny.en",
        "word_timestamps": True,
    }
    app.transcribe(**request)
    events = streamed(app, **request)
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["downloading", "decoding", "transcribing"]
    kinds = [event["event"] for event in events]
    assert kinds.index("segment") > kinds.index("progress") == 3
    *_, last = events
    result = last["result"]
    assert_official(result, "tiny.en", "jfk.flac", word_timestamps=True)
    segments = [event["segment"] for event in events if event["event"] == "segment"]
    assert segments == result["segments"]
    assert all(segment["words"] for segment in segments)


@contextmanager
def streaming(app: App, **request: Any) -> Iterator[http.client.HTTPResponse]:
    """A stream whose caller hangs up at the end of the block."""
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.request("POST", "/transcribe", json.dumps(request | {"stream": True}))
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def in_use() -> int:
    """Slots of tiny.en that are in use, asked for without the HTTP door."""
    models: Any = serve.get_app_handle("whisper").models.remote()
    served: list[dict[str, Any]] = models.result(timeout_s=60)
    [model] = [model for model in served if model["name"] == "tiny.en"]
    return int(model["slots_in_use"] or 0)


def cancelled() -> int:
    """How many requests the Router's log calls cancelled."""
    [file] = session_logs().glob("serve/replica_whisper_Router_*.log")
    return file.read_text().count("status=499 reason=cancelled")


def until_event(response: http.client.HTTPResponse, kind: str) -> None:
    while (line := response.readline()).strip() != f"event: {kind}".encode():
        assert line


@pytest.mark.slow
def test_a_caller_who_leaves_a_stream_frees_the_slot(app: App, audio_url: Url) -> None:
    before = cancelled()
    request = {"audio": audio_url("gettysburg.wav"), "model": "tiny.en"} | ENDLESS
    with streaming(app, **request) as response:
        until_event(response, "segment")
        assert in_use() == 1
    wait_for(lambda: in_use() == 0)
    wait_for(lambda: cancelled() == before + 1)


def proxy_pid() -> int:
    [actor] = [
        ray.get_actor(actor["name"], actor["namespace"])
        for actor in list_named_actors(all_namespaces=True)
        if "SERVE_PROXY_ACTOR" in actor["name"]
    ]
    pids: list[int] = ray.get([actor.__ray_call__.remote(lambda _: os.getpid())])
    return pids[0]


@pytest.mark.slow
def test_the_callers_of_a_proxy_that_is_killed_leave_no_work_behind(
    app: App, audio_url: Url
) -> None:
    before = cancelled()
    request = {"audio": audio_url("gettysburg.wav"), "model": "tiny.en"} | ENDLESS
    with ExitStack() as callers:
        callers.enter_context(calling(app, **request))
        until_event(callers.enter_context(streaming(app, **request)), "segment")
        wait_for(lambda: in_use() == 2)
        os.kill(proxy_pid(), signal.SIGKILL)
        wait_for(lambda: in_use() == 0)
    wait_for(lambda: cancelled() == before + 2)
    wait_for(lambda: answers(app))


def answers(app: App) -> bool:
    """Whether Serve has started another proxy."""
    try:
        return requests.get(f"{app.url}/health", timeout=10).ok
    except requests.RequestException:
        return False
