"""Which recordings are refused because replicas have died with them. No Ray."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np
import pytest

from deployments.contract.errors import HarmfulAudioError, RequestTimeoutError
from deployments.router import harmful_audio
from deployments.router.deadline import Deadline
from deployments.router.harmful_audio import Attempt, HarmfulAudio
from deployments.router.retry import ReplicaLostError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def recording(number: int, seconds: float = 1.0) -> np.ndarray:
    return np.full(round(seconds * 16_000), number, dtype=np.int16)


def attempt_of(
    known: HarmfulAudio, samples: np.ndarray
) -> AbstractAsyncContextManager[Attempt]:
    return known.attempt(samples, Deadline(3600))


async def succeeds(known: HarmfulAudio, samples: np.ndarray) -> None:
    async with attempt_of(known, samples) as attempt:
        attempt.accepted()


async def kills(
    known: HarmfulAudio,
    samples: np.ndarray,
    *,
    died: bool = True,
    accepted: bool = True,
    replica: str | None = None,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> type[Exception]:
    """What is raised where the replica is lost with the recording."""
    with pytest.raises((ReplicaLostError, HarmfulAudioError)) as caught:
        async with attempt_of(known, samples) as attempt:
            if accepted:
                attempt.accepted()
            if meanwhile is not None:
                await meanwhile()
            raise ReplicaLostError(died, replica)
    return caught.type


async def test_a_recording_is_refused_once_two_replicas_have_died_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = HarmfulAudio("base")
    bad = recording(1)
    with caplog.at_level(logging.WARNING):
        assert await kills(known, bad) is ReplicaLostError
        assert await kills(known, bad) is HarmfulAudioError
    with pytest.raises(HarmfulAudioError, match="refused for 10 minutes"):
        await succeeds(known, bad.copy())
    await succeeds(known, recording(2))
    digest = hashlib.sha256(bad.tobytes()).hexdigest()
    assert f"model=base sha256={digest} deaths=2" in caplog.messages[-1]


async def test_it_is_forgotten_after_some_minutes() -> None:
    clock = Clock()
    known = HarmfulAudio("base", clock=clock)
    await kills(known, recording(1))
    await kills(known, recording(1))
    clock.now += 599
    with pytest.raises(HarmfulAudioError):
        await succeeds(known, recording(1))
    clock.now += 1
    await succeeds(known, recording(1))


async def test_a_recording_that_succeeds_is_suspect_no_longer() -> None:
    known = HarmfulAudio("base")
    for _ in range(3):
        assert await kills(known, recording(1)) is ReplicaLostError
        await succeeds(known, recording(1))


@pytest.mark.parametrize("case", ["unreachable", "not accepted", "stopping"])
async def test_deaths_that_say_nothing_of_the_recording_do_not_count(case: str) -> None:
    known = HarmfulAudio("base", stopping=lambda: case == "stopping")
    for _ in range(3):
        assert (
            await kills(
                known,
                recording(1),
                died=case != "unreachable",
                accepted=case != "not accepted",
            )
            is ReplicaLostError
        )


async def test_a_recording_that_was_there_twice_when_one_replica_died_is_not_convicted() -> (
    None
):
    known = HarmfulAudio("base")
    died = asyncio.Event()
    both = [
        asyncio.ensure_future(
            kills(known, recording(1), replica="first", meanwhile=died.wait)
        )
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    died.set()
    assert await asyncio.gather(*both) == [ReplicaLostError, ReplicaLostError]
    assert await kills(known, recording(1), replica="second") is HarmfulAudioError


async def test_those_who_were_beside_the_harmful_recording_are_not_convicted() -> None:
    known = HarmfulAudio("base")
    harmless = [recording(number) for number in range(1, 16)]
    bad = recording(99)
    with_replica: set[int] = set()
    died = asyncio.Event()
    beside_at_the_second_death: list[int] = []

    async def first_try(samples: np.ndarray) -> type[Exception]:
        return await kills(known, samples, meanwhile=died.wait)

    async def second_try(samples: np.ndarray) -> None:
        async with attempt_of(known, samples) as attempt:
            attempt.accepted()
            with_replica.add(int(samples[0]))
            await asyncio.sleep(0)
            if samples is bad:
                beside_at_the_second_death.extend(with_replica)
                raise ReplicaLostError
            with_replica.remove(int(samples[0]))

    at = 7
    everyone = [*harmless[:at], bad, *harmless[at:]]
    first = [asyncio.ensure_future(first_try(samples)) for samples in everyone]
    await asyncio.sleep(0)
    died.set()
    assert set(await asyncio.gather(*first)) == {ReplicaLostError}
    ended = await asyncio.gather(
        *(second_try(samples) for samples in everyone), return_exceptions=True
    )
    assert [type(end) for end in ended].count(HarmfulAudioError) == 1
    assert isinstance(ended[at], HarmfulAudioError)
    assert beside_at_the_second_death == [99]
    for samples in harmless:
        await succeeds(known, samples)


async def test_a_recording_that_kills_late_is_remembered_while_it_is_tried() -> None:
    clock = Clock()
    known = HarmfulAudio("base", clock=clock)

    async def twenty_minutes_with_another_request() -> None:
        clock.now += 1200
        await succeeds(known, recording(2))

    late = [
        await kills(known, recording(1), meanwhile=twenty_minutes_with_another_request)
        for _ in range(2)
    ]
    assert late == [ReplicaLostError, HarmfulAudioError]


async def test_a_turn_ends_after_some_seconds_and_the_next_suspect_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harmful_audio, "_TURN_S", 0.01)
    known = HarmfulAudio("base")
    await kills(known, recording(1))
    await kills(known, recording(2))
    async with asyncio.timeout(60), attempt_of(known, recording(1)):
        # The first one works, or still waits for a replica.
        await succeeds(known, recording(2))


async def test_a_suspect_waits_for_its_turn_no_longer_than_its_deadline() -> None:
    known = HarmfulAudio("base")
    await kills(known, recording(1))
    await kills(known, recording(2))
    async with attempt_of(known, recording(1)):
        with pytest.raises(RequestTimeoutError):
            async with known.attempt(recording(2), Deadline(0.01)):
                pytest.fail("the turn of the first one has not ended")
    await succeeds(known, recording(2))


class WatchedDeadline(Deadline):
    """Tells when a request has begun to wait."""

    def __init__(self) -> None:
        super().__init__(3600)
        self.runs = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running():
            self.runs.set()
            yield


async def test_a_suspect_whose_caller_leaves_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harmful_audio, "_TURN_S", 3600)
    known = HarmfulAudio("base")
    await kills(known, recording(1))
    await kills(known, recording(2))
    has_turn, deadline = asyncio.Event(), WatchedDeadline()

    async def stuck(samples: np.ndarray, deadline: Deadline) -> None:
        async with known.attempt(samples, deadline):
            has_turn.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        running = asyncio.ensure_future(stuck(recording(1), Deadline(3600)))
        await has_turn.wait()
        waiting = asyncio.ensure_future(stuck(recording(2), deadline))
        await deadline.runs.wait()
        for task in (waiting, running):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        await succeeds(known, recording(2))


async def test_no_more_than_a_thousand_recordings_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harmful_audio, "_MAX_REMEMBERED", 2)
    known = HarmfulAudio("base")
    for number in (1, 2, 3):
        await kills(known, recording(number))
    # The first one is forgotten, so this death counts as its first.
    assert await kills(known, recording(1)) is ReplicaLostError
    assert await kills(known, recording(3)) is HarmfulAudioError


async def test_only_recordings_as_long_as_a_suspect_are_hashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = HarmfulAudio("base")
    await kills(known, recording(1, 2.0))

    def refuse(_: object) -> None:
        raise AssertionError("hashed")

    monkeypatch.setattr(hashlib, "sha256", refuse)
    await succeeds(known, recording(1, 1.0))
    with pytest.raises(AssertionError, match="hashed"):
        await succeeds(known, recording(2, 2.0))
