"""Decoders that die, that are killed, and that end with those who want them."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deployments.audio.decode import decode_audio
from deployments.audio.sandbox.client import (
    DecoderDiedError,
    DecoderLostError,
    DecoderStarvedError,
    Sandbox,
)
from deployments.audio.sandbox.limits import Limits
from deployments.audio.sandbox.messages import Job
from deployments.audio.sandbox.process import ZygoteProcess
from deployments.contract.errors import AudioTooComplexError, OverloadedError
from tests.audio.test_decode import FOLDER
from tests.support.sandbox import (
    SANDBOX,
    ZYGOTE,
    decoders,
    endless_ogg,
    has_ended,
    long_silence,
)

ROOT = Path(__file__).parents[3]
SPEECH = FOLDER / "jfk-phone.wav"
JOB = Job(36_000.0)
PATIENCE_S = 60.0


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    return endless_ogg(tmp_path / "endless.ogg")


@pytest.fixture
def deadly(tmp_path: Path) -> Path:
    """A file that is read for a while, and of which a digest is soon computed."""
    return endless_ogg(tmp_path / "deadly.ogg", 1 << 27)


@pytest.fixture
def own_zygote() -> Iterator[ZygoteProcess]:
    """One that may die."""
    zygote = ZygoteProcess()
    yield zygote
    zygote.close()


async def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives when it is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


@contextlib.asynccontextmanager
async def decoding(
    path: Path, zygote: ZygoteProcess = ZYGOTE
) -> AsyncIterator[tuple["asyncio.Task[Any]", psutil.Process]]:
    """A decoding that has begun, and its process."""
    if zygote.pid is None:
        # Of a zygote that starts, the first child decodes nothing.
        await speech_is_decoded(Sandbox(zygote))
    before = decoders(zygote)
    with path.open("rb") as file:
        task = asyncio.create_task(Sandbox(zygote).decode(file, JOB))
        try:
            process = await until(lambda: next(iter(confined(zygote) - before), None))
            yield task, process
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def confined(zygote: ZygoteProcess) -> set[psutil.Process]:
    """The decoders that have begun to read their files."""
    return {process for process in decoders(zygote) if is_confined(process)}


def is_confined(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        return re.search(r"Max open files +0 +0 ", limits) is not None
    return False


async def speech_is_decoded(sandbox: Sandbox = SANDBOX) -> None:
    with SPEECH.open("rb") as file:
        there = await sandbox.decode(file, JOB)
        assert np.array_equal(there.samples, decode_audio(file, 3600).samples)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGSYS", "SIGBUS", "SIGXCPU"])
async def test_a_decoder_that_dies_is_told_by_its_signal_and_hurts_no_other(
    endless: Path, deadly: Path, name: str
) -> None:
    async with decoding(endless) as (other, process):
        zygote = ZYGOTE.pid
        async with decoding(deadly) as (task, dying):
            dying.send_signal(signal.Signals[name])
            with pytest.raises(DecoderDiedError) as caught:
                await task
        assert caught.value.reason == name
        await speech_is_decoded()
        assert process.is_running() and not other.done()
        assert ZYGOTE.pid == zygote


@pytest.mark.parametrize(
    ("limits", "kind", "reason"),
    [
        (
            Limits(cpu_s=1, cpu_s_per_byte=0, cpu_s_per_audio_s=0),
            DecoderDiedError,
            "SIGXCPU",
        ),
        # The soft limit is the hard one, at which the kernel sends SIGKILL.
        (
            Limits(cpu_s=3600, cpu_s_per_byte=0, cpu_s_per_audio_s=-0.1),
            DecoderDiedError,
            "SIGKILL",
        ),
        (Limits(wall_s=0.2, wall_s_per_cpu_s=0), DecoderStarvedError, "deadline"),
    ],
)
async def test_a_decoder_that_has_used_up_its_time_is_ended(
    tmp_path: Path, limits: Limits, kind: type[DecoderDiedError], reason: str
) -> None:
    path = long_silence(tmp_path / "long.wav", 10_000)
    with path.open("rb") as file, pytest.raises(DecoderDiedError) as caught:
        await SANDBOX.decode(file, replace(JOB, limits=limits))
    assert type(caught.value) is kind
    assert caught.value.reason == reason
    assert decoders() == set()


async def test_a_decoder_that_is_killed_for_want_of_memory_is_tried_once_more(
    tmp_path: Path,
) -> None:
    path = long_silence(tmp_path / "long.wav", 1000, rate=8_000)
    async with decoding(path) as (task, process):
        process.suspend()
        # The kernel sends the same signal.
        process.kill()
        audio = await task
    assert len(audio.samples) == 16_000 * 1000


async def test_a_decoder_that_is_killed_twice_is_not_the_files_fault(
    deadly: Path,
) -> None:
    async with decoding(deadly) as (task, first):
        first.kill()
        second = await until(lambda: next(iter(decoders() - {first}), None))
        second.kill()
        with pytest.raises(DecoderStarvedError) as caught:
            await task
    assert caught.value.reason == "SIGKILL"


async def test_a_decoder_has_its_file_its_output_and_its_reply_open_and_nothing_else(
    endless: Path,
) -> None:
    async with decoding(endless) as (_, process):
        descriptors = Path(f"/proc/{process.pid}/fd")
        opened = {int(path.name): os.readlink(path) for path in descriptors.iterdir()}
    # Not the service's log, where it could forge lines.
    assert [opened.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
    recording, waveform, reply = sorted(opened.values(), key=_kind_of_file)
    assert recording == str(endless)
    assert waveform.endswith("(deleted)")
    assert reply.startswith("socket:")


def _kind_of_file(target: str) -> tuple[bool, bool]:
    return target.startswith("socket:"), target.endswith("(deleted)")


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_bytes=150_000_000),
        Limits(extra_output_bytes=1000 - 32_000 * 36_000),
    ],
    ids=["memory", "output"],
)
async def test_a_decoder_that_needs_more_room_than_its_limit_is_told_as_too_complex(
    tmp_path: Path, limits: Limits
) -> None:
    path = long_silence(tmp_path / "long.wav")
    with path.open("rb") as file, pytest.raises(AudioTooComplexError):
        await SANDBOX.decode(file, replace(JOB, limits=limits))


async def test_a_decoder_for_which_the_disk_has_no_room_is_no_fault_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(**_: object) -> Any:
        return open("/dev/full", "r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    with SPEECH.open("rb") as file, pytest.raises(OverloadedError) as caught:
        await SANDBOX.decode(file, JOB)
    assert str(caught.value) == (
        "The service's disk has no room for the file: try again later"
    )


@pytest.mark.parametrize("times", [1, 1000])
async def test_the_decoder_of_a_cancelled_call_is_killed(
    endless: Path, times: int
) -> None:
    async with decoding(endless) as (task, process):
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.cancelled()
        await until(partial(has_ended, process))


async def test_a_cancelled_call_returns_although_its_decoder_cannot_be_killed_yet(
    endless: Path, own_zygote: ZygoteProcess
) -> None:
    async with decoding(endless, own_zygote) as (task, process):
        zygote = process.parent()
        zygote.suspend()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert process.is_running()
        zygote.resume()
        await until(partial(has_ended, process))
        assert own_zygote.pid == zygote.pid


async def test_a_call_tells_when_its_decoder_has_ended(endless: Path) -> None:
    ended = asyncio.Event()
    with SPEECH.open("rb") as file:
        await SANDBOX.decode(file, JOB, ended.set)
        assert ended.is_set()
    before, ended = decoders(), asyncio.Event()
    with endless.open("rb") as file:
        task = asyncio.create_task(SANDBOX.decode(file, JOB, ended.set))
        await until(lambda: decoders() - before)
        assert not ended.is_set()
        task.cancel()
        await asyncio.wait([task])
    await ended.wait()
    assert decoders() == before


async def test_a_file_is_decoded_once_more_where_the_zygote_dies(
    tmp_path: Path, own_zygote: ZygoteProcess
) -> None:
    path = long_silence(tmp_path / "long.wav", 1000, rate=8_000)
    async with decoding(path, own_zygote) as (task, process):
        process.suspend()
        first = process.parent()
        first.kill()
        audio = await task
    assert len(audio.samples) == 16_000 * 1000
    assert own_zygote.pid not in (None, first.pid)
    await until(partial(has_ended, process))


async def test_where_the_zygote_dies_again_the_call_fails_and_the_next_one_does_not(
    endless: Path, own_zygote: ZygoteProcess
) -> None:
    async with decoding(endless, own_zygote) as (task, first):
        first.parent().kill()
        second = await until(lambda: next(iter(decoders(own_zygote) - {first}), None))
        second.parent().kill()
        with pytest.raises(DecoderLostError):
            await task
    await speech_is_decoded(Sandbox(own_zygote))


async def test_a_zygote_that_cannot_start_is_told(
    monkeypatch: pytest.MonkeyPatch, own_zygote: ZygoteProcess
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with SPEECH.open("rb") as file, pytest.raises(DecoderLostError):
        await Sandbox(own_zygote).decode(file, JOB)
    monkeypatch.undo()
    await speech_is_decoded(Sandbox(own_zygote))


async def test_a_sandbox_that_is_closed_leaves_no_process(
    endless: Path, own_zygote: ZygoteProcess
) -> None:
    async with decoding(endless, own_zygote) as (_, process):
        zygote = process.parent()
        await asyncio.to_thread(own_zygote.close)
        assert has_ended(zygote)
        await until(lambda: has_ended(process))


async def test_a_sandbox_that_nobody_refers_to_leaves_no_process(
    endless: Path,
) -> None:
    zygote = ZygoteProcess()
    await speech_is_decoded(Sandbox(zygote))
    process = psutil.Process(zygote.pid)
    del zygote
    await until(lambda: has_ended(process))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
async def test_no_process_outlives_the_one_that_has_started_it(
    endless: Path, name: str
) -> None:
    code = (
        "import asyncio, sys\n"
        "from deployments.audio.sandbox.messages import Job\n"
        "from tests.support.sandbox import SANDBOX\n"
        "for path in sys.argv[1:]:\n"
        "    print(path, flush=True)\n"
        "    asyncio.run(SANDBOX.decode(open(path, 'rb'), Job(36_000.0)))"
    )
    files = [str(SPEECH), str(endless)]
    command = [sys.executable, "-c", code, *files]
    service = psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    for _ in files:
        await asyncio.to_thread(service.stdout.readline)
    below = await until(lambda: len(found := service.children(True)) == 2 and found)
    await until(partial(is_confined, below[-1]))
    # The decoder may be stopped, so that nothing but the kernel can end it.
    below[-1].suspend()
    service.send_signal(signal.Signals[name])
    service.wait()
    for process in below:
        await until(partial(has_ended, process))
    service.stdout.close()


@pytest.mark.slow
async def test_nothing_is_left_of_two_hundred_files(
    endless: Path, deadly: Path
) -> None:
    silence = FOLDER / "silence.wav"

    async def use(number: int) -> None:
        kind = number % 10
        if kind == 0:
            async with decoding(endless) as (task, _):
                task.cancel()
        elif kind == 1:
            with contextlib.suppress(DecoderDiedError):
                async with decoding(deadly) as (task, process):
                    process.kill()
                    await task
        else:
            with silence.open("rb") as file:
                await SANDBOX.decode(file, JOB)

    await use(2)
    assert ZYGOTE.pid is not None
    zygote = psutil.Process(ZYGOTE.pid)
    before = os.listdir("/proc/self/fd"), zygote.num_fds(), zygote.num_threads()
    for number in range(200):
        await use(number)
    assert before == (os.listdir("/proc/self/fd"), zygote.num_fds(), 1)
    assert zygote.children() == []


async def test_samples_cannot_be_written_and_outlive_everything_but_their_array(
    own_zygote: ZygoteProcess,
) -> None:
    with SPEECH.open("rb") as file:
        samples = (await Sandbox(own_zygote).decode(file, JOB)).samples
        expected = decode_audio(file, 3600).samples
    own_zygote.close()
    assert type(samples) is np.ndarray and samples.dtype == np.int16
    assert not samples.flags.writeable
    assert np.array_equal(samples, expected)
    mapped = Path("/proc/self/maps").read_text()
    del samples
    assert Path("/proc/self/maps").read_text().count("(deleted)") < mapped.count(
        "(deleted)"
    )


async def test_the_owner_of_a_file_finds_it_open_and_at_its_place() -> None:
    with SPEECH.open("rb") as file:
        file.seek(1000)
        await SANDBOX.decode(file, JOB)
        assert file.tell() == 1000


async def test_a_decoder_has_no_secrets_of_the_service(
    monkeypatch: pytest.MonkeyPatch, own_zygote: ZygoteProcess
) -> None:
    monkeypatch.setenv("API_KEYS", "SECRET")
    await speech_is_decoded(Sandbox(own_zygote))
    environment = Path(f"/proc/{own_zygote.pid}/environ").read_text()
    assert "PYTHONPATH" in environment
    assert "SECRET" not in environment


def test_a_zygote_imports_neither_ray_nor_torch_nor_whisper() -> None:
    code = (
        "import sys, deployments.audio.sandbox.zygote as z; z.prepare();"
        "print(*{'ray', 'torch', 'whisper', 'pydantic', 'asyncio'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"\n"
