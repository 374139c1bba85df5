"""What callers, the log and the metrics are told of files that cannot be decoded."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.audio.sandbox.client import Sandbox
from deployments.audio.sandbox.process import ZygoteProcess
from deployments.config import AppArgs
from deployments.contract.errors import (
    AudioTooComplexError,
    InvalidAudioError,
    ServiceUnavailableError,
    WhisperServeError,
)
from deployments.cpus import available_cpus
from deployments.http_errors import openai_headers, retry_headers
from deployments.router.decoding import Decoder
from deployments.router.fetching import FetchedFile
from tests.support.routers import AUDIO
from tests.support.sandbox import SANDBOX, decoders, endless_ogg, page

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


def endless(path: Path) -> Path:
    """Of so few bytes that their digest is soon computed."""
    return endless_ogg(path, 1 << 33)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("SIGSEGV", InvalidAudioError, "the file makes the decoder fail"),
        ("SIGKILL", InvalidAudioError, "the file makes the decoder fail"),
        ("SIGXCPU", AudioTooComplexError, "takes more time or memory than"),
    ],
)
async def test_a_decoders_death_is_the_files_fault_and_is_told_the_operator(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    warm: None,
    name: str,
    kind: type[WhisperServeError],
    text: str,
) -> None:
    path = endless_ogg(tmp_path / "endless.ogg", 1 << 30)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        decoder = Decoder(AppArgs(), SANDBOX)
        decoding = asyncio.ensure_future(
            decoder.decode(FetchedFile(file, 0.0, False))
        )
        [process] = await until(decoders)
        process.send_signal(getattr(__import__("signal"), name))
        with pytest.raises(kind) as caught:
            await decoding
    assert type(caught.value) is kind
    assert str(caught.value).startswith("Audio decoding failed: ")
    assert text in str(caught.value)
    assert f"event=decoder_died signal={name} sha256={digest}" in caplog.text
    # Sent again, the file would end in the same way.
    assert retry_headers(caught.value) == {}
    assert openai_headers(None) == {"x-should-retry": "false"}
