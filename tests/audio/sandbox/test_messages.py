"""What decoders say is read as the word of a stranger."""

import pytest

from deployments.audio.sandbox.limits import Limits
from deployments.audio.sandbox.messages import Ended, Job, Reply
from deployments.contract.errors import (
    AudioTooComplexError,
    AudioUrlError,
    InvalidAudioError,
    InvalidRequestError,
    OverloadedError,
    WhisperServeError,
)


def test_messages_arrive_as_they_were_sent() -> None:
    for job in Job(3600.0), Job(1.5, "pt-BR", 1, True, Limits(cpu_s=1.0)):
        assert Job.from_bytes(job.to_bytes()) == job
    ended = Ended(11, 1.5)
    assert Ended.from_bytes(ended.to_bytes()) == ended
    for reply in (
        Reply(),
        Reply(4.9, ("one", "two\n")),
        Reply(failure="KeyError@a.py:1"),
    ):
        assert Reply.from_bytes(reply.to_bytes()) == reply


@pytest.mark.parametrize(
    "kind",
    [
        AudioTooComplexError,
        AudioUrlError,
        InvalidAudioError,
        InvalidRequestError,
        OverloadedError,
    ],
)
def test_an_error_keeps_its_type_and_its_text(kind: type[WhisperServeError]) -> None:
    error = Reply.from_bytes(Reply(error=kind("a text")).to_bytes()).error
    assert type(error) is kind
    assert str(error) == str(kind("a text"))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"start_s": 1, "warnings": [1]}',
        b'{"start_s": "x", "warnings": []}',
        b'{"start_s": NaN, "warnings": []}',
        b'{"error": "SystemExit", "text": "x"}',
        b'{"error": "InvalidAudioError"}',
        b'{"failure": "a\\nevent=forged"}',
        b'{"failure": "KeyError@a.py:1 status=200"}',
        b"[" * 60_000,
    ],
    ids=lambda message: message[:40].decode("latin-1"),
)
def test_a_reply_that_makes_no_sense_is_told_apart(message: bytes) -> None:
    with pytest.raises(ValueError):
        Reply.from_bytes(message)


def test_a_text_that_utf_8_cannot_hold_is_made_readable() -> None:
    read = Reply.from_bytes(b'{"start_s": 0.0, "warnings": ["a\\ud800"]}')
    assert read.warnings == ("a?",)


def test_a_reply_holds_no_more_than_a_caller_can_read() -> None:
    long = Reply(1.0, ("x" * 10_000,) * 1000)
    read = Reply.from_bytes(long.to_bytes())
    assert len(read.warnings) == 100
    assert {len(text) for text in read.warnings} == {4000}
