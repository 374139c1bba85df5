"""What the application logs: one line a request, and nothing confidential."""

import os

import pytest
import requests

from tests.support.app import App, Url, session_logs


@pytest.fixture
def log(app: App, audio_url: Url) -> str:
    """Every log line of the replicas and the proxy, after a success and several failures."""
    secret = "?signature=SECRET"
    app.transcribe(audio=audio_url("jfk.flac") + secret, model="tiny.en")
    app.post(audio=audio_url("nothing.wav") + secret)
    app.post(audio=f"http://127.0.0.1:9/private.wav{secret}")
    app.post(audio=audio_url("manifest.json") + secret)
    app.post(audio=audio_url("jfk.flac") + secret, model="corrupt")
    app.post(audio=audio_url("jfk.flac") + secret, temperature=7)
    files = [*session_logs().glob("serve/*.log"), *session_logs().glob("worker-*.*")]
    return "\n".join(file.read_text(errors="replace") for file in files)


def test_no_secret_no_transcript_and_no_traceback_is_logged(log: str) -> None:
    assert "reason=audio_url_error" in log  # This is the right log.
    for leak in ("SECRET", "signature", "private.wav", "fellow Americans", "jfk.flac"):
        assert leak not in log
    assert "Traceback" not in log


def test_every_request_has_one_line_with_its_id(app: App, audio_url: Url) -> None:
    own_id = f"one-line-{os.getpid()}"
    response = requests.post(
        f"{app.url}/transcribe",
        json={"audio": audio_url("ffmpeg.npz"), "model": "tiny.en"},
        headers={"x-request-id": own_id},
        timeout=60,
    )
    assert response.status_code == 422
    [file] = session_logs().glob("serve/replica_whisper_Router_*.log")
    lines = [
        line for line in file.read_text().splitlines() if f"request_id={own_id}" in line
    ]
    assert len(lines) == 1
    assert "model=tiny.en status=422 reason=invalid_audio" in lines[0]


def test_the_line_holds_the_time_in_the_queue_and_the_windows_of_a_batch(
    app: App, audio_url: Url
) -> None:
    request = {"audio": audio_url("jfk.flac"), "model": "tiny.en", "beam_size": None}
    answer = app.transcribe(**request)
    [file] = session_logs().glob("serve/replica_whisper_Router_*.log")
    [line] = [
        line
        for line in file.read_text().splitlines()
        if f"request_id={answer['request_id']}" in line
    ]
    queue, windows = answer["timings"]["queue"], answer["batch_windows"]
    assert f"queue={queue:.3f} batch_windows={windows:.1f}" in line
