"""One replica decodes many requests together, and its slots and metrics show it."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import ray
import requests

from tests.support.app import ENDLESS, App, Url, calling, replica_pids, wait_for
from tools.official import assert_official

MODEL = "tiny.en"
# Ray exports every 10 s.
METRICS_TIMEOUT_S = 40


@pytest.fixture(scope="module")
def loaded(app: App, audio_url: Url) -> App:
    """The application, with a running replica of the model."""
    app.transcribe(audio=audio_url("silence.wav"), model=MODEL)
    return app


def in_use(app: App) -> int:
    return int(app.model(MODEL)["slots_in_use"])


def test_eight_requests_at_once_to_one_replica(loaded: App, audio_url: Url) -> None:
    jobs: list[tuple[str, dict[str, Any]]] = [
        ("jfk.flac", {}),
        ("jfk.flac", {"beam_size": None}),
        ("jfk.flac", {"word_timestamps": True}),
        ("jfk.mp3", {}),
        ("jfk-phone.wav", {}),
        ("gettysburg.wav", {}),
        ("gettysburg.wav", {"beam_size": None, "word_timestamps": True}),
        ("sonnet.ogg", {}),
    ]
    with ThreadPoolExecutor(len(jobs)) as threads:
        answers = list(
            threads.map(
                lambda job: loaded.transcribe(
                    audio=audio_url(job[0]), model=MODEL, **job[1]
                ),
                jobs,
            )
        )
    for (file, options), answer in zip(jobs, answers, strict=True):
        assert_official(answer, MODEL, file, **options)
        assert answer["batch_windows"] > 1
    assert len(replica_pids(f"whisper-{MODEL}")) == 1


def test_slots_in_use_are_shown_and_a_caller_who_leaves_frees_his(
    loaded: App, audio_url: Url
) -> None:
    assert loaded.model(MODEL)["slots"] == 8
    wait_for(lambda: in_use(loaded) == 0)
    request = ENDLESS | {"audio": audio_url("gettysburg.wav"), "model": MODEL}
    with calling(loaded, **request):
        wait_for(lambda: in_use(loaded) == 1)
        with calling(loaded, **request):
            wait_for(lambda: in_use(loaded) == 2)
        # The other request has more work than this test waits for: its slot is not free.
        wait_for(lambda: in_use(loaded) == 1)
    wait_for(lambda: in_use(loaded) == 0)


def test_a_short_recording_does_not_wait_for_a_long_one(
    loaded: App, audio_url: Url
) -> None:
    with calling(loaded, audio=audio_url("gettysburg.wav"), model=MODEL, **ENDLESS):
        wait_for(lambda: in_use(loaded) == 1)
        short = loaded.transcribe(audio=audio_url("jfk.flac"), model=MODEL)
        assert in_use(loaded) == 1
    assert_official(short, MODEL, "jfk.flac")


def test_a_replica_has_the_priority_of_the_process_that_started_ray(
    loaded: App,
) -> None:
    [pid] = replica_pids(f"whisper-{MODEL}")
    assert psutil.Process(pid).nice() == psutil.Process().nice()


def test_asking_for_slots_starts_no_replica(loaded: App, audio_url: Url) -> None:
    assert loaded.model("small")["slots"] is None
    # A request that came later has been answered, so the question about slots would have reached
    # Serve as well.
    assert loaded.transcribe(audio=audio_url("silence.wav"), model=MODEL)
    assert not loaded.model("small")["running_replicas"]
    assert replica_pids("whisper-small") == []


@pytest.mark.slow
def test_prometheus_finds_what_the_replica_does(loaded: App, audio_url: Url) -> None:
    for _ in range(2):
        loaded.transcribe(audio=audio_url("jfk.flac"), model=MODEL, beam_size=None)
    names = [
        "whisper_windows_decoded_total",
        "whisper_audio_seconds_total",
        "whisper_slots_in_use",
        "whisper_windows_waiting",
        "whisper_queue_seconds_count",
        "whisper_batch_occupancy_count",
        "whisper_requests_total",
        "whisper_request_audio_seconds_total",
    ]

    def exported() -> bool:
        values = [_metric(name) for name in names]
        windows, seconds, slots_in_use, waiting, queued, batched, *whole = values
        answered, seconds_of_requests = whole
        at_rest = slots_in_use == waiting == 0
        # The last of three recordings, and the seconds of two.
        done = queued == batched >= 3 and windows >= 3 and seconds >= 22
        return at_rest and done and answered >= 3 and seconds_of_requests >= 22

    wait_for(exported, METRICS_TIMEOUT_S)


def _metric(name: str) -> float:
    """The value at Ray's port for Prometheus, for this application and model; NaN if it is not
    there.
    """
    [node] = ray.nodes()
    port = node["MetricsExportPort"]
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    tags = f'model="{MODEL}"', 'application="whisper"'
    values = [
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith(f"ray_{name}{{") and all(tag in line for tag in tags)
    ]
    return sum(values) if values else math.nan
