"""A replica's class by itself: loading, failures, health, errors. Random weights, no Serve."""

import asyncio
import gc
import logging
import math
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError
from whisper.model import Whisper

from deployments.config import ModelArgs
from deployments.contract.answer import Progress, SegmentEvent, Stage, words_of
from deployments.contract.errors import (
    DecodingLimitError,
    InvalidRequestError,
    ModelUnavailableError,
    RequestCancelledError,
    TranscriptionError,
)
from deployments.contract.options import TranscriptionOptions
from deployments.engine import (
    DecodingLimitExceeded,
    Engine,
    EngineClosedError,
    TranscriptionCancelled,
    Usage,
)
from deployments.replica import loading, owners
from deployments.replica.loading import load_model
from deployments.replica.metrics import EngineMetrics
from deployments.replica.scaling import LOAD_FAILED
from deployments.replica.shared_audio import SharedAudio
from deployments.replica.transcript import Reply, SlotUse, Transcript
from deployments.replica.whisper_model import WhisperModel
from tests.support.app import random_checkpoint
from tests.support.engine.calls import assert_same, official, until
from tests.support.engine.lively_whisper import lively_whisper
from tests.support.engine.tiny_whisper import sounds
from tests.support.nvml import install_driver, install_torch
from tests.support.recordings import pcm
from tests.support.shared_audio import Owner, shared

NOISE = (np.random.default_rng(0).normal(size=16_000) * 3000).astype(np.int16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "own.pt"


@pytest.fixture
def replica(checkpoint: Path) -> Iterator[WhisperModel]:
    random_checkpoint(checkpoint)
    yield _replica(checkpoint, preload=True)


def _replica(
    checkpoint: Path, preload: bool = False, max_decode_rate: float = math.inf
) -> WhisperModel:
    model = ModelArgs(name="own", checkpoint=str(checkpoint))
    return WhisperModel(model, preload, 0.0, max_decode_rate)


def _options(**fields: Any) -> TranscriptionOptions:
    quick = {"beam_size": None, "temperature_increment_on_fallback": None}
    return TranscriptionOptions(**{"language": "en"} | quick | fields)


async def _transcript(
    replica: WhisperModel,
    audio: np.ndarray | SharedAudio,
    options: TranscriptionOptions,
) -> Transcript:
    """What a request that wants no events on the way gets."""
    if isinstance(audio, np.ndarray):
        audio = shared(audio)
    reply, event = [
        event async for event in replica.stream(audio, options, False, False)
    ]
    assert reply is Reply.ACCEPTED
    assert isinstance(event, Transcript)
    return event


async def test_a_failing_preload_fails_the_constructor(checkpoint: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        _replica(checkpoint, preload=True)


async def test_a_failed_load_is_told_and_the_next_caller_finds_a_new_attempt(
    checkpoint: Path,
) -> None:
    replica = _replica(checkpoint)
    with pytest.raises(ModelUnavailableError, match="does not exist"):
        await replica.ready()
    random_checkpoint(checkpoint)
    await replica.ready()
    await replica.check_health()


async def test_a_gpu_that_cannot_be_used_is_told_before_weights_are_looked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", version="570.86.15", cuda=12080)
    install_torch(monkeypatch, "13.0")
    model = ModelArgs(name="own", checkpoint=str(checkpoint))
    replica = WhisperModel(model, preload=False, gpu_share=0.5)
    with pytest.raises(ModelUnavailableError) as caught:
        await replica.ready()
    assert str(caught.value) == (
        "Model 'own' is not available: the NVIDIA driver 570.86.15 (CUDA 12.8) is too old for"
        " this build of PyTorch, which needs CUDA 13.0, so driver 580 or newer"
    )


async def test_a_replica_reports_a_failed_load_to_the_policy_that_scales_it(
    checkpoint: Path,
) -> None:
    replica = _replica(checkpoint)
    with pytest.raises(ModelUnavailableError):
        await replica.ready()
    assert await replica.record_autoscaling_stats() == {LOAD_FAILED: 1.0}
    random_checkpoint(checkpoint)
    await replica.ready()
    assert await replica.record_autoscaling_stats() == {LOAD_FAILED: 0.0}


async def test_an_import_that_fails_is_told_as_a_failed_load(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("deployments.replica.loading")
    monkeypatch.setitem(sys.modules, "deployments.replica.loading", None)
    random_checkpoint(checkpoint)
    with pytest.raises(
        ModelUnavailableError, match=r"loading failed \(ModuleNotFoundError\)"
    ):
        _replica(checkpoint, preload=True)


async def test_a_replica_is_found_before_its_model_is_loaded(checkpoint: Path) -> None:
    replica = _replica(checkpoint)
    await replica.ping()
    await replica.check_health()


async def test_the_loaded_model_is_dropped_for_the_engines_own_copy(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(*args: Any) -> Whisper:
        model = load_model(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "load_model", load)
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint, preload=True)
    gc.collect()
    assert [model() for model in loaded] == [None]
    await replica.check_health()


async def test_a_failed_load_leaves_nothing_in_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []

    def fail(engine: Engine) -> None:
        batch = engine.scheduler.runner.batch
        loaded.extend(weakref.ref(part) for part in (engine, batch))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loading, "warm_up", fail)
    monkeypatch.setattr(loading, "_WARMED_UP_DEVICES", ("cpu",))
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint)
    gc.collect()
    gc.disable()  # what is in a circle stays, and shows
    try:
        with pytest.raises(ModelUnavailableError, match=r"out of memory \(cpu\)"):
            await replica.ready()
        until(lambda: [part() for part in loaded] == [None] * 2)
    finally:
        gc.enable()


async def test_the_log_tells_what_a_loaded_model_takes(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("deployments.replica.whisper_model")
    logger.addHandler(caplog.handler)
    try:
        random_checkpoint(checkpoint)
        replica = _replica(checkpoint, preload=True)
    finally:
        logger.removeHandler(caplog.handler)
    stats = (await replica.engine()).stats()
    line = caplog.messages[-1]
    assert line.startswith("event=loaded model=own device=cpu")
    slot_mb, held_mb = stats.slot_bytes / 1e6, stats.bytes_held / 1e6
    assert f" slots=8 slot_mb={slot_mb:.0f} held_mb={held_mb:.0f} verify=" in line
    assert re.search(r"import=\S+ read=\S+ prepare=\S+$", line)


async def test_a_replica_takes_its_share_of_the_gpus_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def make_engine(model: Whisper, **options: Any) -> Engine:
        given.update(options)
        return Engine(model)

    install_driver(monkeypatch, "NVIDIA L4")
    install_torch(monkeypatch, "13.0")
    monkeypatch.setattr(loading, "card_memory", lambda: 24_000_000_000)
    monkeypatch.setattr(loading, "Engine", make_engine)
    random_checkpoint(checkpoint)
    WhisperModel(ModelArgs(name="own", checkpoint=str(checkpoint)), True, 0.25)
    assert given == {"device": "cuda", "memory_bytes": 6_000_000_000}


async def test_a_replicas_process_belongs_to_its_engine(checkpoint: Path) -> None:
    random_checkpoint(checkpoint)
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        await _replica(checkpoint).ready()
        assert sys.getswitchinterval() == pytest.approx(0.0001)
    finally:
        sys.setswitchinterval(before)


async def test_slots_are_known_once_the_model_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def load(*args: Any) -> Whisper:
        assert goes_on.wait(10)
        return load_model(*args)

    monkeypatch.setattr(loading, "load_model", load)
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint)
    assert await replica.slots() is None
    goes_on.set()
    await replica.ready()
    assert await replica.slots() == SlotUse(slots=8, slots_in_use=0, windows_waiting=0)


async def test_timings_tell_the_wait_apart_and_how_many_decoded_together(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = []

    def work(_: Engine, __: np.ndarray, **options: Any) -> dict[str, Any]:
        time.sleep(0.3)
        options["on_usage"](Usage(queue_s=0.1, windows=2, occupancy=3.5))
        return {"segments": [], "language": "en", "text": ""}

    monkeypatch.setattr(Engine, "transcribe", work)
    monkeypatch.setattr(
        EngineMetrics, "observe", lambda _, usage: observed.append(usage)
    )
    transcript = await _transcript(replica, NOISE, _options())
    assert (transcript.queue_s, transcript.batch_windows) == (0.1, 3.5)
    assert 0.2 <= transcript.transcribe_s < 60
    assert [usage.windows for usage in observed] == [2]


async def test_requests_decode_together(replica: WhisperModel) -> None:
    noise = np.random.default_rng(1).normal(size=(4, 160_000)) * 3000
    answers = await asyncio.gather(
        *(_transcript(replica, audio.astype(np.int16), _options()) for audio in noise)
    )
    assert max(answer.batch_windows for answer in answers) > 1


def _spoken_twice() -> np.ndarray:
    """A speech, 40 s of silence, and the speech again."""
    spoken = pcm("jfk.flac")
    return np.concatenate([spoken, np.zeros(40 * 16_000, np.int16), spoken])


async def test_a_recording_is_transcribed_in_chunks_where_the_request_says_so(
    replica: WhisperModel,
) -> None:
    audio = _spoken_twice()
    transcript = await _transcript(replica, audio, _options(chunking_strategy="auto"))
    assert transcript.chunks is not None
    first, second = transcript.chunks
    assert first.end < 12
    assert second.start > 50
    pieces = [
        audio[round(chunk.start * 16_000) : round(chunk.end * 16_000)]
        for chunk in transcript.chunks
    ]
    alone = [await _transcript(replica, piece, _options()) for piece in pieces]
    assert transcript.text == "".join(piece.text for piece in alone)
    assert [segment.tokens for segment in transcript.segments] == [
        segment.tokens for piece in alone for segment in piece.segments
    ]
    assert transcript.warnings == []
    assert alone[0].chunks is None


async def test_where_nobody_speaks_nothing_is_decoded(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Engine, "transcribe")
    monkeypatch.delattr(Engine, "detect_language")
    silence = np.zeros(90 * 16_000, np.int16)
    options = _options(chunking_strategy="auto", word_timestamps=True, language=None)
    transcript = await _transcript(replica, silence, options)
    assert (transcript.text, transcript.segments) == ("", [])
    assert (transcript.words, transcript.chunks) == ([], [])
    assert transcript.language is None
    [warning] = transcript.warnings
    assert warning == (
        "chunking_strategy: no speech was found, so nothing was transcribed; a lower threshold"
        " finds more"
    )
    named = _options(chunking_strategy="auto", language="pt")
    assert (await _transcript(replica, silence, named)).language == "pt"
    events = [event async for event in replica.stream(shared(silence), named)]
    assert Progress(done=90.0, total=90.0) in events


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The limits of all calls of an engine, each of which exceeds its limit."""
    found: list[float] = []

    def work(_: Engine, __: np.ndarray, **options: Any) -> dict[str, Any]:
        found.append(options["max_busy_s"])
        raise DecodingLimitExceeded

    monkeypatch.setattr(Engine, "transcribe", work)
    return found


async def test_the_limit_of_a_chunk_is_that_of_its_own_audio(
    checkpoint: Path, limits: list[float]
) -> None:
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint, preload=True, max_decode_rate=2.0)
    with pytest.raises(
        DecodingLimitError,
        match="for a chunk of 1[01].. s .*: ask for a larger",
    ):
        await _transcript(replica, _spoken_twice(), _options(chunking_strategy="auto"))
    assert set(limits) == {60.0}


async def test_a_caller_who_leaves_ends_the_work_on_chunks(
    replica: WhisperModel,
) -> None:
    audio = np.tile(_spoken_twice(), 20)
    events = replica.stream(shared(audio), _options(chunking_strategy="auto"))
    async for event in events:
        if isinstance(event, Progress):
            break
    await events.aclose()
    engine = await replica.engine()
    await asyncio.to_thread(until, lambda: engine.stats().slots_in_use == 0)


async def test_health_fails_when_the_engines_thread_is_gone(
    replica: WhisperModel,
) -> None:
    await replica.check_health()
    (await replica.engine()).close()
    with pytest.raises(RuntimeError, match="thread is gone"):
        await replica.check_health()
    with pytest.raises(ModelUnavailableError, match="its engine has stopped"):
        await _transcript(replica, NOISE, _options())


async def test_a_request_that_takes_too_long_for_its_audio_is_told_what_to_change(
    checkpoint: Path,
) -> None:
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint, preload=True, max_decode_rate=1e-9)
    with pytest.raises(DecodingLimitError) as caught:
        await _transcript(replica, NOISE, _options())
    assert str(caught.value).startswith(
        "Decoding took more than 0 s, the limit for 1.0 s of audio"
        " (max_decode_s_per_audio_s): ask for"
    )


async def test_the_limit_grows_with_the_audio_and_counts_a_whole_window_at_least(
    checkpoint: Path, limits: list[float]
) -> None:
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint, preload=True, max_decode_rate=2.0)
    for seconds in (1, 90):
        with pytest.raises(DecodingLimitError):
            await _transcript(replica, np.zeros(seconds * 16_000, np.int16), _options())
    assert limits == [60.0, 180.0]


async def test_own_weights_are_asked_what_they_can_do(replica: WhisperModel) -> None:
    request = _options(suppress_tokens=[51_866])
    with pytest.raises(InvalidRequestError, match="token ids up to 51865"):
        await _transcript(replica, NOISE, request)
    with pytest.raises(InvalidRequestError, match="50257 is the end of text"):
        await _transcript(replica, NOISE, _options(suppress_tokens=[50257]))


@pytest.mark.parametrize(
    ("raised", "answered", "text"),
    [
        (TranscriptionCancelled(), RequestCancelledError, "The request was cancelled"),
        (
            EngineClosedError(),
            ModelUnavailableError,
            "Model 'own' is not available: its engine has stopped",
        ),
        (
            torch.OutOfMemoryError("2 GiB at 0x7f"),
            TranscriptionError,
            "Transcription failed: out of GPU memory",
        ),
        (
            ValueError("said the transcript"),
            TranscriptionError,
            "Transcription failed: ValueError",
        ),
    ],
)
async def test_what_the_engine_raises_becomes_an_answer_without_its_text(
    replica: WhisperModel,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    answered: type[Exception],
    text: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Engine, "transcribe", fail)
    with pytest.raises(answered) as caught:
        await _transcript(replica, NOISE, _options())
    assert str(caught.value) == text
    assert caught.value.__cause__ is None


async def test_a_gpu_error_has_the_replica_replaced(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("device-side assert", 710)

    monkeypatch.setattr(Engine, "transcribe", fail)
    with pytest.raises(TranscriptionError, match="AcceleratorError"):
        await _transcript(replica, NOISE, _options())
    with pytest.raises(RuntimeError, match="GPU error"):
        await replica.check_health()


async def test_word_timestamps_are_present_exactly_when_asked_for(
    replica: WhisperModel,
) -> None:
    without = await _transcript(replica, NOISE, _options())
    assert without.words is None
    assert all(segment.words is None for segment in without.segments)
    with_words = await _transcript(replica, NOISE, _options(word_timestamps=True))
    assert isinstance(with_words.words, list)
    assert all(segment.words is not None for segment in with_words.segments)


async def test_the_words_of_a_segment_are_its_text_when_they_are_joined(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loading, "load_model", lambda *_: lively_whisper(n_audio_ctx=1500)
    )
    random_checkpoint(checkpoint)
    replica = _replica(checkpoint, preload=True)
    options = _options(word_timestamps=True, logprob_threshold=None)
    events = [event async for event in replica.stream(shared(sounds(40)), options)]
    *_, transcript = events
    assert isinstance(transcript, Transcript)
    told = [event.segment for event in events if isinstance(event, SegmentEvent)]
    assert told == transcript.segments
    joined = ["".join(word.word for word in s.words or []) for s in told]
    assert [text.strip() for text in joined] == [segment.text for segment in told]
    assert any(text.startswith(" ") for text in joined)
    assert transcript.words == words_of(told)


async def test_events_are_told_only_if_they_are_wanted(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []

    def work(_: Engine, __: np.ndarray, **options: Any) -> None:
        names = ("on_segments", "on_progress", "on_start")
        wanted.append(tuple(options[name] is not None for name in names))
        raise TranscriptionCancelled

    monkeypatch.setattr(Engine, "transcribe", work)
    for segments in (True, False):
        with pytest.raises(RequestCancelledError):
            async for _ in replica.stream(
                shared(NOISE), _options(), segments, not segments
            ):
                pass
    assert wanted == [(True, False, False), (False, True, True)]


async def test_a_transcription_is_told_to_begin_and_then_how_far_it_has_come(
    replica: WhisperModel,
) -> None:
    audio = np.tile(NOISE, 31)
    events = [event async for event in replica.stream(shared(audio), _options())]
    accepted, stage, *rest = events
    assert accepted is Reply.ACCEPTED
    assert stage == Stage(stage="transcribing", duration=31.0)
    done = [event.done for event in rest if isinstance(event, Progress)]
    assert done[0] == 0.0 and done[-1] == 31.0
    assert done == sorted(set(done))
    assert not any(isinstance(event, Stage) for event in rest)


async def test_a_request_beyond_the_slots_is_told_how_many_windows_come_before_it(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _held_up(monkeypatch)
    slots = (await replica.slots() or SlotUse(0, 0, 0)).slots
    accepted = [replica.stream(shared(NOISE), _options()) for _ in range(slots + 2)]
    for events in accepted:
        assert await anext(events) is Reply.ACCEPTED
    for windows_ahead, events in enumerate(accepted[slots:]):
        assert await anext(events) == Stage(
            stage="queued", duration=1.0, windows_ahead=windows_ahead
        )
    for events in accepted:
        await events.aclose()


async def test_leaving_a_stream_ends_its_work(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def work(_: Engine, __: np.ndarray, **options: Any) -> None:
        options["on_start"]()
        while not options["cancelled"]():
            time.sleep(0.01)
        ended.set()
        raise TranscriptionCancelled

    monkeypatch.setattr(Engine, "transcribe", work)
    events = replica.stream(shared(NOISE), _options())
    assert await anext(events) is Reply.ACCEPTED
    assert await anext(events) == Stage(stage="transcribing", duration=1.0)
    assert await anext(events) == Progress(done=0.0, total=1.0)
    await events.aclose()
    assert await asyncio.to_thread(ended.wait, 5)


def _held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go on until they are cancelled."""

    def work(_: Engine, __: np.ndarray, **options: Any) -> None:
        while not options["cancelled"]():
            time.sleep(0.01)
        raise TranscriptionCancelled

    monkeypatch.setattr(Engine, "transcribe", work)


async def test_a_full_replica_declines_a_request_and_still_answers_questions(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _held_up(monkeypatch)
    accepted = [replica.stream(shared(NOISE), _options()) for _ in range(16)]
    for events in accepted:
        assert await anext(events) is Reply.ACCEPTED
    declined = [e async for e in replica.stream(shared(NOISE), _options())]
    assert declined == [Reply.FULL, Stage(stage="queued", windows_ahead=8)]
    await replica.ready()
    assert await replica.slots() is not None
    await accepted[0].aclose()
    next_one = replica.stream(shared(NOISE), _options())
    assert await anext(next_one) is Reply.ACCEPTED
    for events in [*accepted[1:], next_one]:
        await events.aclose()


async def test_a_dead_owners_requests_end_and_those_of_others_go_on(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "_ASK_EVERY_S", 0.01)
    _held_up(monkeypatch)
    dies, lives = Owner(), Owner()
    orphaned, *others = [
        asyncio.ensure_future(_transcript(replica, shared(NOISE, owner), _options()))
        for owner in (dies, lives, lives)
    ]
    while not (dies.asked and lives.asked):
        await asyncio.sleep(0.01)
    dies.failure = ActorDiedError()
    lives.failure = ActorUnavailableError("the network failed", None)
    with pytest.raises(asyncio.CancelledError):
        await orphaned
    asked = lives.asked
    while lives.asked < asked + 3:
        await asyncio.sleep(0.01)
    assert not any(other.done() for other in others)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_watch_that_broke_begins_anew_with_the_owners_next_request(
    replica: WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "_ASK_EVERY_S", 0.01)
    _held_up(monkeypatch)
    owner = Owner()
    owner.failure = ValueError("no error of Ray's")
    first = asyncio.ensure_future(
        _transcript(replica, shared(NOISE, owner), _options())
    )
    while not owner.asked:
        await asyncio.sleep(0.01)
    owner.failure = ActorDiedError()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await _transcript(replica, shared(NOISE, owner), _options())
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


def test_a_request_without_options_gives_the_result_of_whisper_transcribe() -> None:
    model, audio = lively_whisper(n_audio_ctx=1500), sounds(12)
    options = TranscriptionOptions().whisper_options()
    # No window of this model is good enough for the thresholds.
    options |= {"sample_len": 8, "logprob_threshold": None}
    with Engine(model) as engine:
        ours = engine.transcribe(audio, **options)
    assert_same(ours, official(model, audio, **options))
