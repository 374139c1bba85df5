"""Four hours of audio in one request: its memory is bounded."""

import wave
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import App, Url, replica_pids
from tests.support.http_server import served_file

HOURS_4 = 4 * 3600
GIGABYTE = 10**9


@pytest.mark.slow
def test_four_hours_take_less_than_three_gigabytes(
    app: App, audio_url: Url, tmp_path: Path
) -> None:
    path = tmp_path / "four-hours.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        for _ in range(HOURS_4 // 60):
            file.writeframes(bytes(range(256)) * (8000 * 60 // 256))
    request: dict[str, Any] = {
        "model": "tiny.en",
        "beam_size": None,
        "clip_timestamps": "0,5",
        "temperature_increment_on_fallback": 0,
    }
    with served_file(path) as url:
        app.transcribe(audio=audio_url("silence.wav"), **request)
        processes = [*replica_pids("Router"), *replica_pids("whisper-tiny.en")]
        assert len(processes) == 2
        for process in processes:
            _forget_peak(process)
        before = sum(_memory(process, "VmRSS") for process in processes)
        answer = app.transcribe(audio=url, **request)
    peak = sum(_memory(process, "VmHWM") for process in processes)
    assert abs(answer["duration"] - HOURS_4) < 60
    # Pages of the shared object store count for each process that touches them.
    assert peak - before < 3 * GIGABYTE


def _memory(process: int, field: str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _forget_peak(process: int) -> None:
    Path(f"/proc/{process}/clear_refs").write_text("5")
