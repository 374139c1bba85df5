"""What the whole session above wrote into its logs; named so that it runs late, and makes its own noise too."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import App

Url = Callable[[str], str]


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
    folder = Path(os.path.realpath("/tmp/ray/session_latest/logs"))
    files = [*folder.glob("serve/*.log"), *folder.glob("worker-*.*")]
    return "\n".join(file.read_text(errors="replace") for file in files)


def test_no_secret_no_transcript_and_no_traceback_is_logged(log: str) -> None:
    assert "reason=audio_url_error" in log  # it is the right log
    for leak in ("SECRET", "signature", "private.wav", "fellow Americans", "jfk.flac"):
        assert leak not in log
    assert "Traceback" not in log


def test_every_request_has_one_line_with_its_id(log: str) -> None:
    lines = [line for line in log.splitlines() if "reason=invalid_audio" in line]
    assert lines
    assert all("request_id=" in line and "status=422" in line for line in lines)
