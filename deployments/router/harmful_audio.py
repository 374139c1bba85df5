"""Recordings with which replicas have died, so that one caller cannot end a model in rounds."""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from deployments.contract.errors import HarmfulAudioError
from deployments.router.deadline import Deadline
from deployments.router.retry import ReplicaLostError

logger = logging.getLogger(__name__)

_REMEMBERED_S = 600.0
_MAX_REMEMBERED = 1000
_DEATHS = 2
# A recording that has not killed its replica by then is no reason to keep the others waiting.
_TURN_S = 10.0


@dataclass
class _Suspect:
    """A recording that a replica worked on when it died.

    digest: SHA-256 of the samples, hexadecimal
    samples: how many
    replicas: that died
    until: when it is forgotten, by the clock
    """

    digest: str
    samples: int
    replicas: set[str] = field(default_factory=set)
    until: float = 0.0


class Attempt:
    """One try of a request with a replica.

    accepted_at: when a replica accepted the request, by the clock; None: none has
    waited_s: how long the try had to wait for those of other suspects
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.accepted_at: float | None = None
        self.waited_s = 0.0
        self._clock = clock

    def accepted(self) -> None:
        """Called when a replica has accepted the request."""
        self.accepted_at = self._clock()


class HarmfulAudio:
    """What is suspected of one model's recordings.

    When a replica dies, each recording that it worked on may have killed it, so all of them are
    suspect. Suspects are tried one after the other: the next one is sent to a replica when the one
    before has ended, or has had its turn for some seconds. So the recording that kills soon is
    there alone when a second replica dies, without those that were beside it the first time. One
    that succeeds is suspect no longer.

    A death counts if a replica had accepted the request and its process ended: not if it could not
    be reached for a moment, not if its machine was taken away, and not while this service stops.
    Requests with the same recording count one replica's death once. A replica that dies in a
    second try because of another request beside it, which took its memory or is a suspect that
    kills late, is counted all the same, for nothing tells these cases apart. This is why a
    recording is refused for some minutes and not for ever.

    model: its name
    stopping: whether the service stops
    clock: as `time.monotonic`
    """

    def __init__(
        self,
        model: str,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._stopping = stopping
        self._clock = clock
        # By digest, the one that is forgotten first in front.
        self._suspects: dict[str, _Suspect] = {}
        self._one_turn = asyncio.Lock()

    @asynccontextmanager
    async def attempt(
        self, samples: np.ndarray, deadline: Deadline
    ) -> AsyncIterator[Attempt]:
        """Watch one try, which the block makes and which raises ReplicaLostError.

        samples: int16 waveform, shape (samples,)
        deadline: of the request; runs while a suspect waits for its turn

        Raises HarmfulAudioError in place of the try where two replicas have died with the
        recording, and in place of ReplicaLostError where this was the second one; and
        RequestTimeoutError where the turn does not come in time.
        """
        suspect = await self._suspect_of(samples)
        async with self._turn(suspect, deadline) as attempt:
            try:
                yield attempt
            except ReplicaLostError as lost:
                began = attempt.accepted_at
                if lost.died and began is not None and not self._stopping():
                    replica = lost.replica or uuid.uuid4().hex
                    await self._died(samples, suspect, replica, self._clock() - began)
                raise
            if suspect is not None:
                self._suspects.pop(suspect.digest, None)

    async def _suspect_of(self, samples: np.ndarray) -> _Suspect | None:
        self._forget()
        # Hours of audio are hashed only where their length is that of a suspect.
        if all(len(samples) != known.samples for known in self._suspects.values()):
            return None
        suspect = self._suspects.get(await _digest(samples))
        self._refuse(suspect)
        return suspect

    @asynccontextmanager
    async def _turn(
        self, suspect: _Suspect | None, deadline: Deadline
    ) -> AsyncIterator[Attempt]:
        """The turn of a suspect, which ends with the block or after some seconds.

        A recording that is not suspect does not wait for a turn.
        """
        attempt = Attempt(self._clock)
        if suspect is None:
            yield attempt
            return
        started = self._clock()
        async with deadline.running():
            await self._one_turn.acquire()
        attempt.waited_s = self._clock() - started
        over = False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                self._one_turn.release()

        timer = asyncio.get_running_loop().call_later(_TURN_S, end)
        try:
            # Another request may have had the same recording.
            self._refuse(suspect)
            yield attempt
        finally:
            timer.cancel()
            end()

    async def _died(
        self,
        samples: np.ndarray,
        tried: _Suspect | None,
        replica: str,
        ran_s: float,
    ) -> None:
        """Remember a death.

        tried: what was known when the try began, which may be forgotten by now if it ran for long
        """
        digest = await _digest(samples)
        suspect = self._suspects.pop(digest, None)
        suspect = suspect or tried or _Suspect(digest, len(samples))
        if tried is not None:
            suspect.replicas |= tried.replicas
        suspect.replicas.add(replica)
        suspect.until = self._clock() + _REMEMBERED_S
        self._suspects[digest] = suspect
        while len(self._suspects) > _MAX_REMEMBERED:
            del self._suspects[next(iter(self._suspects))]
        logger.warning(
            "event=replica_died_with_audio model=%s sha256=%s deaths=%d seconds=%.1f",
            self._model,
            digest,
            len(suspect.replicas),
            ran_s,
        )
        self._refuse(suspect)

    def _refuse(self, suspect: _Suspect | None) -> None:
        if suspect is not None and len(suspect.replicas) >= _DEATHS:
            raise HarmfulAudioError(
                f"{_DEATHS} replicas of model '{self._model}' have died while they worked on this"
                f" recording, so it is refused for {_REMEMBERED_S / 60:.0f} minutes"
            )

    def _forget(self) -> None:
        now = self._clock()
        for suspect in [*self._suspects.values()]:
            if suspect.until > now:
                break
            del self._suspects[suspect.digest]


async def _digest(samples: np.ndarray) -> str:
    # In a thread, because hours of audio take a second; hashlib lets other threads run meanwhile.
    digest = await asyncio.to_thread(hashlib.sha256, np.ascontiguousarray(samples).data)
    return digest.hexdigest()
