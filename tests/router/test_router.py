"""The Router on a handle that answers as told: real validation, download and decoding; no Ray."""

import asyncio
import base64
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from deployments.contract.answer import Progress, Result, SegmentEvent, Stage
from deployments.contract.errors import (
    AudioUrlError,
    HarmfulAudioError,
    InvalidAudioError,
    InvalidRequestError,
    OverloadedError,
    RequestTimeoutError,
    TranscriptionError,
    WhisperServeError,
)
from deployments.contract.options import TranscriptionOptions
from deployments.replica.transcript import SlotUse
from tests.support.handles import (
    FOREVER,
    PROGRESS,
    SEGMENT,
    Handle,
    Response,
    events,
    transcript,
)
from tests.support.misbehaving_server import (
    Connection,
    MisbehavingServer,
)
from tests.support.routers import AUDIO, RECORDING, router

DIED = ActorDiedError()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines of the request log."""
    written: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    logger = logging.getLogger("deployments.router.request_log")
    handler, level = Keep(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.setLevel(level)
    logger.removeHandler(handler)


def answering(*items: Any) -> Handle:
    return Handle(stream=[events(*items)])


async def test_an_answer_is_made_of_what_the_model_and_the_router_know() -> None:
    handle = answering(
        transcript(" hello ", segments=[SEGMENT.segment], warnings=["a prompt was cut"])
    )
    answer = await router(handle).answer(RECORDING, "mine")
    assert answer.transcription == "hello"
    assert answer.segments == [SEGMENT.segment]
    assert (answer.model, answer.device, answer.request_id) == ("base", "cpu", "mine")
    assert answer.duration == pytest.approx(11, abs=0.1)
    assert answer.batch_windows == 2.5
    assert answer.warnings == ["a prompt was cut"]
    timings = answer.timings
    assert timings.transcribe == 1.0
    assert 0.5 <= timings.queue < 60
    assert timings.decode > 0 and timings.model_start >= 0


INPUTS = AUDIO / "inputs"


def file(name: str) -> dict[str, Any]:
    data = (INPUTS / name).read_bytes()
    return {"audio_base64": base64.b64encode(data).decode()}


async def test_warnings_of_the_decoding_stand_before_those_of_the_model() -> None:
    handle = answering(transcript(warnings=["a prompt was cut"]))
    answer = await router(handle).answer(file("inv.flac"))
    decoding, model = answer.warnings
    assert "channels cancel" in decoding
    assert model == "a prompt was cut"


async def test_an_answer_tells_by_how_much_the_audio_starts_later() -> None:
    late = await router(answering(transcript())).answer(file("offset.mp4"))
    assert late.audio_start == pytest.approx(4.936)
    assert (await router(answering(transcript())).answer(RECORDING)).audio_start == 0


@pytest.mark.parametrize(
    ("name", "chosen"),
    [("two.mkv", {"audio_track": "por"}), ("call.ogg", {"audio_channel": 1})],
)
async def test_a_request_chooses_its_track_and_channel(
    name: str, chosen: dict[str, Any]
) -> None:
    heard = []
    for choice in ({}, chosen):
        handle = answering(transcript())
        await router(handle).answer(file(name) | choice)
        heard.append(handle.arguments[-1][0])
    assert not np.array_equal(*heard)


async def test_a_track_or_channel_that_is_not_there_is_refused() -> None:
    served = router(answering(transcript()))
    with pytest.raises(InvalidRequestError, match=r"Its audio tracks: 0 .*, 1 "):
        await served.answer(file("two.mkv") | {"audio_track": 7})
    with pytest.raises(InvalidRequestError, match="no channel 2"):
        await served.answer(file("call.ogg") | {"audio_channel": 2})


async def test_the_language_has_a_probability_where_it_was_detected() -> None:
    detected = answering(transcript(language="pt", language_probability=0.75))
    answer = await router(detected).answer(RECORDING)
    assert (answer.detected_language, answer.language_probability) == ("pt", 0.75)
    assert (await router(answering(transcript())).answer(RECORDING)).model_dump()[
        "language_probability"
    ] is None


async def test_words_are_in_the_answer_exactly_when_they_were_asked_for() -> None:
    dumped = (await router(answering(transcript())).answer(RECORDING)).model_dump()
    assert "word_timestamps" not in dumped
    with_words = answering(transcript(words=[]))
    dumped = (await router(with_words).answer(RECORDING)).model_dump()
    assert dumped["word_timestamps"] == []


async def test_the_last_event_is_what_a_unary_request_is_answered() -> None:
    handle = answering(PROGRESS, SEGMENT, transcript())
    got = [event async for event in router(handle).events(RECORDING, "1")]
    assert [type(event) for event in got] == [Stage, Progress, SegmentEvent, Result]
    assert isinstance(got[-1], Result)
    unary = await router(answering(transcript())).answer(RECORDING, "1")
    same = {"timings": unary.timings}
    assert got[-1].result.model_copy(update=same) == unary


async def test_what_is_wrong_with_a_request_comes_in_place_of_its_first_stage() -> None:
    work = events(transcript(), delay_s=FOREVER)
    handle = Handle(stream=[work])
    small = router(handle, max_requests_per_model=1, max_waiting_requests=0)
    with pytest.raises(InvalidRequestError):
        await anext(small.events({"audio": ""}))
    first = asyncio.ensure_future(small.answer(RECORDING))
    while "stream" not in handle.calls:
        await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError):
        await anext(small.events(RECORDING))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_request_fetches_and_decodes_its_audio_before_it_waits_for_a_place() -> (
    None
):
    work = events(transcript(), delay_s=FOREVER)
    handle = Handle(stream=[work, events(transcript())])
    small = router(handle, max_requests_per_model=1)
    first = asyncio.ensure_future(small.answer(RECORDING))
    while "stream" not in handle.calls:
        await asyncio.sleep(0.01)
    waiting = small.events(RECORDING)
    assert await anext(waiting) == Stage(stage="decoding")
    queued = await anext(waiting)
    assert isinstance(queued, Stage)
    assert (queued.stage, queued.windows_ahead) == ("queued", None)
    assert queued.duration == pytest.approx(11, abs=0.1)
    first.cancel()
    assert [type(event) async for event in waiting] == [Result]


async def test_a_stage_arrives_while_the_work_on_it_goes_on() -> None:
    let_go = threading.Event()

    def held_back(connection: Connection) -> None:
        connection.request()
        let_go.wait(60)

    with MisbehavingServer() as server:
        server.answer(held_back)
        stream = router(answering(transcript())).events({"audio": server.url()})
        assert await anext(stream) == Stage(stage="downloading")
        await stream.aclose()
        let_go.set()


async def test_a_handles_callers_get_plain_dicts() -> None:
    handle = answering(PROGRESS, SEGMENT, transcript())
    got = [event async for event in router(handle).stream(RECORDING, "1")]
    stage, progress, segment, result = got
    assert stage == {"event": "stage", "stage": "decoding"}
    assert progress == {"event": "progress", "done": 0.0, "total": 1.0}
    assert segment == {"event": "segment", "segment": SEGMENT.segment.model_dump()}
    assert result["event"] == "result"
    assert result["result"]["transcription"] == "hello"
    answer = await router(answering(transcript())).transcribe(RECORDING, "1")
    assert answer.keys() == result["result"].keys()


async def test_a_model_gets_the_options_and_the_waveform_and_nothing_of_the_door() -> (
    None
):
    handle = answering(transcript())
    await router(handle).answer(RECORDING | {"beam_size": 3})
    audio, options, segments, progress = handle.arguments[-1]
    samples = await audio.samples()
    assert (samples.dtype, samples.ndim) == ("int16", 1)
    assert options == TranscriptionOptions(beam_size=3)
    assert type(options) is TranscriptionOptions
    assert (segments, progress) == (False, False)


async def test_a_request_goes_to_the_model_it_names_or_to_the_default_one() -> None:
    served = router(answering(transcript()), "tiny", "large-v3", "turbo")
    assert (await served.answer(RECORDING)).model == "tiny"
    named = await served.answer(RECORDING | {"model": "large-v3-turbo"})
    assert named.model == "turbo"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"model": "huge"},
            "Invalid model: 'huge'. Valid models: base, tiny.en, turbo",
        ),
        ({"beam_size": 0}, "Invalid beam_size: must be an integer between 1 and 10"),
        (
            {"model": "tiny.en", "language": "de"},
            "Invalid language: model 'tiny.en' knows English only",
        ),
        (
            {"model": "turbo", "task": "translate"},
            (
                "Invalid task: model 'turbo' was not trained to translate."
                " Models that translate: base"
            ),
        ),
        (
            {"audio_base64": "?"},
            "Invalid audio_base64: the text is no base64: it holds '?' at character 1",
        ),
        (
            {"audio": "data:audio/wav;base64", "audio_base64": None},
            (
                "Invalid audio: the text is a data URI without a comma, and so without"
                " data"
            ),
        ),
    ],
)
async def test_what_cannot_be_done_is_refused_before_a_model_is_called(
    fields: dict[str, Any], text: str
) -> None:
    handle = answering(transcript())
    with pytest.raises(InvalidRequestError) as caught:
        await router(handle, "base", "tiny.en", "turbo").answer(RECORDING | fields)
    assert str(caught.value).startswith(text)
    assert handle.calls == []


async def test_audio_that_cannot_be_had_or_read_reaches_no_model() -> None:
    handle = answering(transcript())
    with pytest.raises(AudioUrlError, match="^Audio download failed: "):
        await router(handle).answer({"audio": "ftp://example.com/a.mp3"})
    with pytest.raises(InvalidAudioError, match="^Audio decoding failed: "):
        await router(handle).answer({"audio_base64": "AAAA"})
    assert handle.calls == []


async def test_a_request_whose_replica_dies_is_tried_once_more() -> None:
    handle = Handle(stream=[events(DIED), events(transcript())])
    assert (await router(handle).answer(RECORDING)).transcription == "hello"
    with pytest.raises(HarmfulAudioError, match="2 replicas of model 'base' have died"):
        await router(answering(DIED)).answer(RECORDING)


async def test_a_models_own_error_arrives_as_it_was_raised() -> None:
    raised = TranscriptionError("Transcription failed: out of GPU memory")
    as_ray_raises_it = RayTaskError("f", "Traceback", raised).as_instanceof_cause()
    with pytest.raises(TranscriptionError) as caught:
        await router(answering(as_ray_raises_it)).answer(RECORDING)
    assert caught.value is raised


async def test_an_unforeseen_error_is_told_without_its_text(lines: list[str]) -> None:
    with pytest.raises(WhisperServeError) as caught:
        await router(answering(ValueError("the transcript"))).answer(RECORDING)
    assert str(caught.value) == "Internal error; the log names it"
    assert caught.value.__cause__ is None
    assert "status=500 reason=ValueError@" in lines[-1]
    assert "the transcript" not in lines[-1]


async def test_a_model_that_ends_without_a_result_is_an_error() -> None:
    with pytest.raises(WhisperServeError, match="gave no result"):
        await router(answering()).answer(RECORDING)


async def test_a_deadline_ends_the_work() -> None:
    work = events(transcript(), delay_s=FOREVER)
    late = router(Handle(stream=[work]), request_timeout_s=0.02)
    with pytest.raises(
        RequestTimeoutError, match=r"limit of 0\.02 s \(request_timeout_s"
    ):
        await late.answer(RECORDING)
    assert work.cancelled


async def test_a_caller_who_leaves_ends_the_work(lines: list[str]) -> None:
    work = events(PROGRESS, transcript(), delay_s=FOREVER)
    handle = Handle(stream=[work])
    task = asyncio.ensure_future(router(handle).answer(RECORDING))
    while "stream" not in handle.calls:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.cancelled
    assert "status=499 reason=cancelled" in lines[-1]


async def test_a_stream_that_is_left_early_counts_as_cancelled(
    lines: list[str],
) -> None:
    work = events(SEGMENT, transcript())
    stream = router(Handle(stream=[work])).events(RECORDING)
    assert await anext(stream) == Stage(stage="decoding")
    assert await anext(stream) == SEGMENT
    await stream.aclose()
    assert work.cancelled
    assert "status=499 reason=cancelled" in lines[-1]


async def test_too_many_requests_are_refused_and_the_places_come_back() -> None:
    work = events(transcript(), delay_s=FOREVER)
    handle = Handle(stream=[work, events(transcript())])
    full = router(handle, max_requests_per_model=1, max_waiting_requests=0)
    first = asyncio.ensure_future(full.answer(RECORDING))
    while "stream" not in handle.calls:
        await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="Too many requests wait"):
        await full.answer(RECORDING)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await full.answer(RECORDING)).transcription == "hello"


async def test_each_request_is_one_line_of_the_log(lines: list[str]) -> None:
    served = router(answering(transcript()))
    await served.answer(RECORDING, "mine")
    with pytest.raises(InvalidRequestError):
        await served.answer({"audio": ""}, "yours")
    assert len(lines) == 2
    assert lines[0].startswith("request_id=mine model=base status=200 reason=ok ")
    assert lines[0].endswith(" batch_windows=2.5 key=-")
    assert lines[1].startswith(
        "request_id=yours model=- status=422 reason=invalid_request "
    )


@pytest.mark.parametrize("odd", [None, "", "two words", "new\nline", "x" * 129])
async def test_an_id_that_does_not_fit_into_a_log_line_is_replaced(
    odd: str | None,
) -> None:
    answer = await router(answering(transcript())).answer(RECORDING, odd)
    assert len(answer.request_id) == 32 and answer.request_id.isalnum()


async def test_the_models_tell_what_is_known_and_what_their_replicas_do() -> None:
    handle = Handle(slots=[Response([SlotUse(8, 3, 1), SlotUse(8, 0, 0)])])
    served = router(handle, "tiny.en", "turbo", running=2)
    tiny, turbo = await served.models()
    assert tiny == {
        "name": "tiny.en",
        "aliases": [],
        "default": True,
        "parameters": 39_000_000,
        "multilingual": False,
        "weights_cached": tiny["weights_cached"],
        "running_replicas": 2,
        "slots": 16,
        "slots_in_use": 3,
        "windows_waiting": 1,
    }
    assert (turbo["aliases"], turbo["default"]) == (["large-v3-turbo"], False)


async def test_a_model_without_replicas_has_no_slots_and_none_is_started() -> None:
    handle = Handle()
    [model] = await router(handle, running=0).models()
    assert (model["running_replicas"], model["slots"]) == (0, None)
    assert handle.calls == []


async def test_health_tells_which_application_it_is() -> None:
    assert await router(Handle()).health() == {
        "application": "whisper",
        "status": "ok",
        "default_model": "base",
    }


LONG_ENOUGH = {"max_audio_s": 60}


async def test_limits_change_while_the_router_runs() -> None:
    served = router(answering(transcript()), **LONG_ENOUGH)
    served.reconfigure({})
    assert await served.answer(RECORDING)
    served.reconfigure({"max_audio_s": 5})
    with pytest.raises(InvalidAudioError, match="longer than the limit of 0:00:05"):
        await served.answer(RECORDING)
    # What a later configuration does not name is again as in the arguments.
    served.reconfigure({"max_waiting_requests": 1})
    assert await served.answer(RECORDING)


WRONG_LIMITS = pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"max_audio": 5}, "max_audio"),
        ({"max_audio_s": -5}, "max_audio_s"),
        ({"device": "cuda"}, "'device' can only be changed under args"),
        ({"models": []}, "'models' can only be changed under args"),
    ],
)


@WRONG_LIMITS
async def test_a_router_does_not_start_with_wrong_limits(
    limits: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        router(answering(transcript())).reconfigure(limits)


@WRONG_LIMITS
async def test_a_running_router_keeps_its_limits_where_new_ones_are_wrong(
    limits: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = router(answering(transcript()), **LONG_ENOUGH)
    served.reconfigure({})
    logger = logging.getLogger("deployments.router.router")
    logger.addHandler(caplog.handler)
    try:
        served.reconfigure({"max_waiting_requests": 0} | limits)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages[-1].startswith("event=limits_refused reason=")
    assert text in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    assert await served.answer(RECORDING)
