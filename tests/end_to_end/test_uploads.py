"""Uploads through Serve's HTTP proxy, by the clients that people use."""

import http.client
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks.upload import peaks
from tests.support.app import AUDIO, App, session_logs, wait_for
from tools.official import assert_official


def curl(app: App, *arguments: str) -> tuple[dict[str, Any], int]:
    """The answer that curl prints, and how many bytes it sent."""
    told = "\n%{size_upload}"
    command = ["curl", "-s", "-w", told, *arguments, f"{app.url}/transcribe"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answer, _, sent = out.rpartition("\n")
    return json.loads(answer), int(sent)


@pytest.mark.slow
def test_curl_uploads_a_recording_and_a_video(app: App) -> None:
    answer, _ = curl(app, f"-Ffile=@{AUDIO / 'jfk.flac'}", "-Fmodel=tiny.en")
    assert_official(answer, "tiny.en", "jfk.flac")
    video, _ = curl(app, f"-Ffile=@{AUDIO / 'jfk.mp4'}", "-Fmodel=tiny.en")
    assert "my fellow Americans" in video["transcription"]
    type_of_its_own = "Content-Type: audio/mpeg"
    data = f"@{AUDIO / 'jfk.mp3'}"
    alone, _ = curl(app, "-H", type_of_its_own, "--data-binary", data)
    assert "my fellow Americans" in alone["transcription"]


def test_a_body_without_a_length_may_have_the_file_first(app: App) -> None:
    head = "--x\r\nContent-Disposition: form-data; name={}\r\n\r\n"

    def body() -> Iterator[bytes]:
        yield head.format("file").encode()
        with (AUDIO / "jfk.flac").open("rb") as file:
            while piece := file.read(10_000):
                yield piece
        yield ("\r\n" + head.format('"model"') + "tiny.en\r\n--x--").encode()

    response = requests.post(
        f"{app.url}/transcribe",
        data=body(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=300,
    )
    assert response.status_code == 200, response.text
    assert_official(response.json(), "tiny.en", "jfk.flac")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_file_that_is_too_large_is_answered_before_it_is_sent_whole(
    impatient: App, tmp_path: Path, chunked: bool
) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 200_000_000)
    length = ["-H", "Transfer-Encoding: chunked"] if chunked else []
    answer, sent = curl(impatient, *length, f"-Ffile=@{large}")
    assert answer == {
        "error": "The file is larger than the limit of 500000 bytes (max_download_bytes)",
        "type": "request_too_large",
    }
    assert sent < 100_000_000


def test_a_client_that_sends_all_before_it_reads_gets_the_answer(
    impatient: App,
) -> None:
    response = requests.post(
        f"{impatient.url}/transcribe", files={"file": bytes(30_000_000)}, timeout=300
    )
    assert response.status_code == 413
    assert response.json()["type"] == "request_too_large"


def test_a_client_that_leaves_in_the_middle_is_logged_as_one(app: App) -> None:
    own_id = uuid.uuid4().hex
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"))
    connection.putrequest("POST", "/transcribe")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", "100000000")
    connection.putheader("x-request-id", own_id)
    connection.endheaders()
    connection.send(b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n")
    connection.send(bytes(5_000_000))
    connection.close()
    [log] = session_logs().glob("serve/replica_whisper_Router_*.log")
    wait_for(lambda: f"request_id={own_id} " in log.read_text())
    [line] = [line for line in log.read_text().splitlines() if own_id in line]
    assert "status=499" in line


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [True, False])
def test_a_large_upload_takes_little_memory_in_every_process(
    app: App, tmp_path: Path, chunked: bool
) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 900_000_000)
    length = ["-H", "Transfer-Encoding: chunked"] if chunked else []
    with peaks() as peak:
        answer, sent = curl(app, *length, f"-Ffile=@{large}")
    assert answer["type"] == "invalid_audio" and sent > 900_000_000
    assert set(peak) == {"proxy", "router"}
    for process in peak.values():
        assert process.grown_mb("anonymous") < 150
        assert process.grown_mb("resident") < 400
