"""The router's side of one model, on a handle that answers as told. No Ray cluster."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.config import AppArgs, ModelArgs
from deployments.contract.answer import Stage
from deployments.contract.errors import (
    HarmfulAudioError,
    InvalidAudioError,
    ModelUnavailableError,
    OverloadedError,
    RequestTimeoutError,
    TranscriptionError,
)
from deployments.contract.options import TranscriptionOptions
from deployments.replica.transcript import ReplicaEvent, SlotUse, Transcript
from deployments.router import model_client
from deployments.router.model_client import ModelClient
from tests.support.handles import (
    FOREVER,
    PROGRESS,
    SEGMENT,
    Handle,
    Response,
    events,
    full,
    transcript,
)
from tests.support.shared_audio import shared

AUDIO = np.zeros(1, dtype=np.int16)
OPTIONS = TranscriptionOptions()
DIED = ActorDiedError()


def client(handle: Handle, gpu_share: float = 0.0, **args: Any) -> ModelClient:
    return ModelClient(
        ModelArgs(name="base"), cast(Any, handle), AppArgs(**args), gpu_share, shared
    )


async def last(model: ModelClient, audio: np.ndarray = AUDIO) -> Transcript:
    """What a request that wants no events on the way is answered."""
    [event] = [event async for event in model.stream(audio, OPTIONS, False, False)]
    assert isinstance(event, Transcript)
    return event


async def test_an_answer_tells_how_long_the_model_took_to_start() -> None:
    handle = Handle(ready=[Response(None, 0.05)], stream=[events(transcript())])
    result = await last(client(handle))
    assert result.text == "hello"
    assert result.model_start_s >= 0.05


async def test_a_replica_that_has_just_answered_is_not_asked_whether_it_is_ready() -> (
    None
):
    handle = Handle(stream=[events(transcript()), events(DIED), events(transcript())])
    model = client(handle)
    for _ in range(2):
        await last(model)
    # The second request found its replica dead, and asked for another.
    assert handle.calls == ["ready", "stream", "stream", "ready", "stream"]


async def test_a_replica_without_a_gpu_needs_no_place() -> None:
    handle = Handle(stream=[events(transcript())])
    await last(client(handle))
    assert handle.calls == ["ready", "stream"]


async def test_no_free_share_of_a_gpu_is_told_soon_and_the_wish_for_one_withdrawn() -> (
    None
):
    ping = Response(None, FOREVER)
    stuck = client(Handle(ping=[ping]), gpu_share=0.25, placement_timeout_s=0.02)
    with pytest.raises(ModelUnavailableError) as caught:
        await last(stuck)
    assert str(caught.value) == (
        "Model 'base' is not available: no free share of a GPU"
        " (it needs 0.25 of one) within 0.02 s"
    )
    assert ping.cancelled


async def test_a_start_that_takes_too_long_is_told() -> None:
    ready = Response(None, FOREVER)
    slow = client(Handle(ready=[ready]), model_start_timeout_s=0.02)
    with pytest.raises(ModelUnavailableError) as caught:
        await last(slow)
    assert str(caught.value) == (
        "Model 'base' is not available: it is still starting after 0.02 s,"
        " try again later"
    )
    assert ready.cancelled


async def test_the_start_does_not_count_as_time_of_the_request() -> None:
    handle = Handle(ready=[Response(None, 1.1)], stream=[events(transcript())])
    assert await last(client(handle, request_timeout_s=1))


async def test_a_deadline_ends_the_work() -> None:
    work = events(transcript(), delay_s=FOREVER)
    late = client(Handle(stream=[work]), request_timeout_s=0.02)
    with pytest.raises(
        RequestTimeoutError, match=r"limit of 0\.02 s \(request_timeout_s"
    ):
        await last(late)
    assert work.cancelled


async def test_a_caller_who_leaves_ends_the_work() -> None:
    work = events(transcript(), delay_s=FOREVER)
    task = asyncio.ensure_future(last(client(Handle(stream=[work]))))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.cancelled


async def test_a_request_whose_replica_dies_is_tried_once_more() -> None:
    handle = Handle(stream=[events(DIED), events(transcript())])
    result = await last(client(handle))
    assert result.text == "hello"
    handle = Handle(stream=[events(DIED)])
    with pytest.raises(HarmfulAudioError, match="2 replicas of model 'base' have died"):
        await last(client(handle))
    assert handle.calls == ["ready", "stream"] * 2


async def test_suspects_wait_for_the_next_replica_side_by_side() -> None:
    # A replica dies with three recordings, and the next one is not ready yet.
    ready = [*[Response(None)] * 3, Response(None, FOREVER)]
    handle = Handle(ready=ready, stream=[events(DIED)])
    model = client(handle)
    tries = [
        asyncio.ensure_future(last(model, np.full(16_000, number, np.int16)))
        for number in range(3)
    ]
    async with asyncio.timeout(60):
        while handle.calls.count("ready") < 6:
            await asyncio.sleep(0.001)
    for task in tries:
        task.cancel()
    await asyncio.gather(*tries, return_exceptions=True)


async def test_both_tries_together_keep_the_deadline() -> None:
    handle = Handle(
        stream=[events(DIED, delay_s=0.15), events(transcript(), delay_s=0.15)]
    )
    with pytest.raises(
        RequestTimeoutError, match=r"limit of 0\.2 s \(request_timeout_s"
    ):
        await last(client(handle, request_timeout_s=0.2))


async def test_the_replicas_own_error_arrives_without_rays_traceback() -> None:
    original = InvalidAudioError("the file is empty")
    raised = RayTaskError("stream", "Traceback ...", original).as_instanceof_cause()
    handle = Handle(stream=[events(raised)])
    with pytest.raises(InvalidAudioError) as caught:
        await last(client(handle))
    assert caught.value is original
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("died_after", [(), (PROGRESS,)])
async def test_a_stream_begins_anew_while_no_segment_has_gone_out(
    died_after: tuple[Any, ...],
) -> None:
    handle = Handle(stream=[events(*died_after, DIED), events(SEGMENT, transcript())])
    got = [event async for event in client(handle).stream(AUDIO, OPTIONS)]
    assert got[-2] == SEGMENT
    assert isinstance(got[-1], Transcript)


async def test_a_stream_is_not_repeated_once_a_segment_has_gone_out() -> None:
    handle = Handle(stream=[events(SEGMENT, DIED)])
    got = []
    with pytest.raises(ModelUnavailableError, match="its replica died"):
        async for event in client(handle).stream(AUDIO, OPTIONS):
            got.append(event)
    assert got == [SEGMENT]
    assert handle.calls.count("stream") == 1


async def test_leaving_a_stream_ends_its_work_at_once() -> None:
    work = events(SEGMENT, SEGMENT)
    stream = client(Handle(stream=[work])).stream(AUDIO, OPTIONS)
    assert await anext(stream) == SEGMENT
    await stream.aclose()
    assert work.cancelled


async def test_a_streams_deadline_ends_its_work() -> None:
    work = events(PROGRESS, SEGMENT, delay_s=0.6)
    stream = client(Handle(stream=[work]), request_timeout_s=1).stream(AUDIO, OPTIONS)
    assert await anext(stream) == PROGRESS
    with pytest.raises(RequestTimeoutError):
        await anext(stream)
    assert work.cancelled


async def test_a_request_waits_until_a_replica_has_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_STILL_FULL_S", 0.02)
    handle = Handle(stream=[full(), full(), events(transcript())])
    result = await last(client(handle))
    assert handle.calls == ["ready", "stream", "stream", "stream"]
    # The audio is put into the object store once, whoever takes it.
    assert len({id(audio) for audio, *_ in handle.arguments[1:]}) == 1
    assert result.queue_s >= 0.5 + 2 * 0.02


async def test_requests_that_wait_for_room_are_dispatched_in_order() -> None:
    # Only the end of the first request lets the second one try again.
    first = events(transcript("first"), delay_s=0.05)
    handle = Handle(stream=[first, full(), *(events(transcript(n)) for n in "23")])
    model = client(handle)
    texts = []

    async def ask() -> None:
        texts.append((await last(model)).text)

    tasks = [asyncio.ensure_future(ask()) for _ in range(3)]
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)
    assert texts == ["first", "2", "3"]


async def test_the_end_of_a_request_makes_room_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_STILL_FULL_S", FOREVER)
    first = events(transcript(), delay_s=0.05)
    model = client(Handle(stream=[first, full(), events(transcript())]))
    async with asyncio.timeout(60):
        await asyncio.gather(last(model), last(model))


async def test_who_leaves_while_all_replicas_are_full_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_STILL_FULL_S", FOREVER)
    handle = Handle(stream=[full(), events(transcript())])
    model = client(handle)
    waiting = asyncio.ensure_future(last(model))
    while "stream" not in handle.calls:
        await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(60):
        assert await last(model)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_waiting_for_room_does_not_count_as_time_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_STILL_FULL_S", 1.1)
    handle = Handle(stream=[full(), events(transcript())])
    assert await last(client(handle, request_timeout_s=1))


async def test_where_no_replica_answers_those_who_wait_are_told_together() -> None:
    handle = Handle(stream=[Response([transcript()], FOREVER)])
    model = client(handle, model_start_timeout_s=0.2)
    # One after the other they would take a minute.
    async with asyncio.timeout(30):
        failures = await asyncio.gather(
            *(last(model) for _ in range(300)), return_exceptions=True
        )
    assert all("still starting" in str(failure) for failure in failures)


async def test_only_a_start_that_takes_a_while_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_READY_WITHIN_S", 0.05)
    for delay_s, is_reported in ((0.0, False), (0.5, True)):
        reported: list[Stage] = []
        handle = Handle(ready=[Response(None, delay_s)], stream=[events(transcript())])
        audio = np.zeros(32_000, dtype=np.int16)
        stream = client(handle).stream(audio, OPTIONS, on_stage=reported.append)
        assert [type(event) async for event in stream] == [Transcript]
        expected = [Stage(stage="starting_model", duration=2.0)] if is_reported else []
        assert reported == expected


async def test_requests_that_wait_for_a_replica_with_room_are_told_what_is_ahead() -> (
    None
):
    handle = Handle(stream=[full(8), full(8), full(7), events(transcript())])
    model = client(handle)
    reported: list[list[Stage]] = [[], []]
    first, second = (
        asyncio.ensure_future(
            _all(model.stream(AUDIO, OPTIONS, on_stage=stages.append))
        )
        for stages in reported
    )
    await asyncio.gather(first, second)
    ahead = [[stage.windows_ahead for stage in stages] for stages in reported]
    assert ahead == [[8, 7], [9, 8]]
    assert {stage.stage for stages in reported for stage in stages} == {"queued"}


async def test_a_request_that_finds_room_has_no_stages() -> None:
    reported: list[Stage] = []
    handle = Handle(stream=[events(transcript())])
    await _all(client(handle).stream(AUDIO, OPTIONS, on_stage=reported.append))
    assert reported == []


async def _all(stream: AsyncGenerator[ReplicaEvent, None]) -> list[ReplicaEvent]:
    return [event async for event in stream]


@asynccontextmanager
async def admitted(model: ModelClient) -> AsyncIterator[None]:
    """A request of a second that has a place."""
    with model.admission.request() as ticket:
        async with model.admission.decoding_turn(ticket):
            model.admission.decoded(ticket, 1.0)
        async with model.admission.place(ticket):
            yield


async def test_other_limits_hold_at_once() -> None:
    model = client(Handle(), max_requests_per_model=1, max_waiting_requests=0)
    async with admitted(model):
        with pytest.raises(OverloadedError):
            async with admitted(model):
                pass
        model.set_limits(AppArgs(max_requests_per_model=2, max_waiting_requests=0))
        async with admitted(model):
            pass


async def test_a_failing_transcription_is_not_tried_again() -> None:
    raised = RayTaskError("f", "", TranscriptionError("x")).as_instanceof_cause()
    handle = Handle(stream=[events(raised)])
    with pytest.raises(TranscriptionError):
        await last(client(handle))
    assert handle.calls == ["ready", "stream"]


def slots(in_use: int, waiting: int = 0) -> SlotUse:
    """What a replica tells of itself."""
    return SlotUse(slots=8, slots_in_use=in_use, windows_waiting=waiting)


async def test_the_slots_of_all_replicas_are_counted_together() -> None:
    handle = Handle(slots=[Response([slots(8, waiting=3), slots(2)])])
    assert await client(handle).slots(2) == SlotUse(
        slots=16, slots_in_use=10, windows_waiting=3
    )


async def test_a_replica_that_loads_its_model_or_dies_has_no_slots() -> None:
    handle = Handle(slots=[Response([None, slots(1), DIED])])
    assert await client(handle).slots(3) == slots(1)
    handle = Handle(slots=[Response([None])])
    assert await client(handle).slots(1) is None


async def test_no_replica_is_started_to_be_asked_for_its_slots() -> None:
    handle = Handle()
    assert await client(handle).slots(0) is None
    assert handle.calls == []


async def test_replicas_that_do_not_answer_at_once_have_unknown_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_SLOTS_TIMEOUT_S", 0.02)
    assert await client(Handle(slots=[Response([], FOREVER)])).slots(1) is None
    gone = Response(DeploymentUnavailableError(cast(Any, "whisper-base")))
    assert await client(Handle(slots=[gone])).slots(1) is None


async def test_idle_replicas_are_asked_for_their_slots_once() -> None:
    handle = Handle(slots=[Response([slots(0)]), Response([slots(5)])])
    model = client(handle)
    for _ in range(3):
        assert await model.slots(1) == slots(0)
    assert handle.calls == ["slots"]
    async with admitted(model):
        assert await model.slots(1) == slots(5)
    assert await model.slots(1) == slots(0)
    assert len(handle.calls) == 2


async def test_replicas_that_another_router_uses_are_asked_each_time() -> None:
    handle = Handle(slots=[Response([slots(n)]) for n in (3, 4, 0, 5)])
    model = client(handle)
    assert [await model.slots(1) for _ in range(4)] == [slots(n) for n in (3, 4, 0, 0)]


async def test_idle_replicas_are_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_client, "_STILL_IDLE_S", 0.0)
    model = client(Handle(slots=[Response([slots(0)]), Response([slots(5)])]))
    assert await model.slots(1) == slots(0)
    assert await model.slots(1) == slots(5)


async def test_other_replicas_than_those_asked_before_are_asked() -> None:
    handle = Handle(slots=[Response([slots(0)]), Response([slots(0), slots(0)])])
    model = client(handle)
    assert await model.slots(1) == slots(0)
    assert await model.slots(2) == SlotUse(16, 0, 0)
