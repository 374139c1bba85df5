"""What callers, the log and the metrics are told of files that cannot be decoded."""

import asyncio
import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
import ray.serve.metrics

from deployments.audio.decode import DecodedAudio
from deployments.audio.sandbox.client import Sandbox
from deployments.audio.sandbox.limits import Limits
from deployments.audio.sandbox.messages import Job
from deployments.config import AppArgs
from deployments.contract.errors import (
    AudioTooComplexError,
    InvalidAudioError,
    OverloadedError,
    ServiceUnavailableError,
    WhisperServeError,
)
from deployments.cpus import available_cpus
from deployments.http_errors import retry_headers
from deployments.router import metrics
from deployments.router.decoding import Decoder
from deployments.router.fetching import FetchedFile
from tests.support.routers import AUDIO
from tests.support.sandbox import (
    SANDBOX,
    ZYGOTE,
    decoders,
    endless_ogg,
    long_silence,
)

SPEECH = AUDIO / "jfk-phone.wav"


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


@pytest.fixture
async def warm() -> None:
    """The zygote runs, so that its children are decoders."""
    with SPEECH.open("rb") as file:
        await Decoder(AppArgs(), SANDBOX).decode(FetchedFile(file, 0.0, False))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Name and signal of what Ray's counters were told."""
    counted: list[tuple[str, str]] = []

    class Counter:
        def __init__(self, name: str, description: str, tag_keys: Any) -> None:
            self._name = name
            assert description.endswith(".") and tag_keys == ("signal",)

        def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            counted.append((self._name, (tags or {})["signal"]))

    monkeypatch.setattr(ray.serve.metrics, "Counter", Counter)
    metrics._metric.cache_clear()
    yield counted
    metrics._metric.cache_clear()


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("SIGSEGV", InvalidAudioError, "the file makes the decoder fail"),
        ("SIGXCPU", AudioTooComplexError, "takes more time or memory than"),
    ],
)
async def test_a_decoders_death_is_the_files_fault_and_is_told_to_the_operator(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    counted: list[tuple[str, str]],
    warm: None,
    name: str,
    kind: type[WhisperServeError],
    text: str,
) -> None:
    path = endless_ogg(tmp_path / "endless.ogg", 1 << 27)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        decoder = Decoder(AppArgs(), SANDBOX)
        decoding = asyncio.ensure_future(decoder.decode(FetchedFile(file, 0.0, False)))
        [process] = await until(decoders)
        process.send_signal(signal.Signals[name])
        with pytest.raises(kind) as caught:
            await decoding
    assert type(caught.value) is kind
    assert str(caught.value).startswith("Audio decoding failed: ")
    assert text in str(caught.value)
    assert f"event=decoder_died signal={name} sha256={digest}" in caplog.text
    assert counted == [("whisper_decoder_deaths", name)]
    # Sent again, the file would end in the same way.
    assert retry_headers(caught.value) == {}


class _Hurried(Sandbox):
    """Gives no decoder the time to end."""

    async def decode(
        self,
        file: BinaryIO,
        job: Job,
        when_ended: Callable[[], object] = lambda: None,
    ) -> DecodedAudio:
        limits = Limits(wall_s=0.1, wall_s_per_cpu_s=0)
        return await super().decode(file, replace(job, limits=limits), when_ended)


async def test_a_machine_without_time_for_a_decoder_is_not_the_files_fault(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    counted: list[tuple[str, str]],
    warm: None,
) -> None:
    path = endless_ogg(tmp_path / "endless.ogg", 1 << 30)
    decoder = Decoder(AppArgs(), _Hurried(ZYGOTE))
    with path.open("rb") as file, pytest.raises(OverloadedError) as caught:
        await decoder.decode(FetchedFile(file, 0.0, False))
    assert str(caught.value) == (
        "The service lacks the memory or the CPU time to decode the file at the moment:"
        " try again later"
    )
    assert retry_headers(caught.value)
    assert "event=decoder_died signal=deadline sha256=" in caplog.text
    assert counted == [("whisper_decoder_deaths", "deadline")]


async def test_where_no_decoder_can_be_started_the_service_is_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    decoder = Decoder(AppArgs())
    with SPEECH.open("rb") as file, pytest.raises(ServiceUnavailableError) as caught:
        await decoder.decode(FetchedFile(file, 0.0, False))
    assert retry_headers(caught.value)


async def test_files_wait_for_a_core_in_the_order_in_which_they_came(
    tmp_path: Path, warm: None
) -> None:
    path = endless_ogg(tmp_path / "endless.ogg")
    decoder = Decoder(AppArgs(), SANDBOX)
    ended = []

    async def decode(name: str, path: Path) -> None:
        with path.open("rb") as file:
            await decoder.decode(FetchedFile(file, 0.0, False))
        ended.append(name)

    cores = available_cpus()
    busy = [asyncio.create_task(decode("endless", path)) for _ in range(cores)]
    await until(lambda: len(decoders()) == cores)
    waiting = [asyncio.create_task(decode(name, SPEECH)) for name in "abc"]
    # Files that came later would have been decoded by then, if there were a decoder for them.
    with SPEECH.open("rb") as file:
        await SANDBOX.decode(file, Job(3600.0))
    assert not any(task.done() for task in waiting)
    # A decoder that nobody wants any more holds its core until it ends.
    zygote = psutil.Process(ZYGOTE.pid)
    zygote.suspend()
    busy[0].cancel()
    await asyncio.wait([busy[0]])
    still_waiting = not any(task.done() for task in waiting)
    zygote.resume()
    assert still_waiting
    await asyncio.gather(*waiting)
    assert ended == ["a", "b", "c"]
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_a_changed_limit_holds_for_the_next_file_in_the_same_processes(
    warm: None,
) -> None:
    decoder = Decoder(AppArgs(), SANDBOX)
    zygote = ZYGOTE.pid
    decoder.set_limits(AppArgs(max_audio_s=1))
    with SPEECH.open("rb") as file, pytest.raises(InvalidAudioError) as caught:
        await decoder.decode(FetchedFile(file, 0.0, False))
    assert "max_audio_s: 1" in str(caught.value)
    assert ZYGOTE.pid == zygote


async def test_the_event_loop_goes_on_while_files_are_decoded(tmp_path: Path) -> None:
    path = long_silence(tmp_path / "long.wav", rate=8_000)
    decoder = Decoder(AppArgs(), SANDBOX)
    turns = 0
    with path.open("rb") as file:
        decoding = asyncio.ensure_future(decoder.decode(FetchedFile(file, 0.0, False)))
        while not decoding.done():
            turns += 1
            await asyncio.sleep(0)
        audio = await decoding
    # Decoding in this thread would leave it a handful.
    assert turns > 1000
    assert audio.duration_s == 3600
