"""Which requests of one model wait, are decoded and are in work."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from deployments.contract.answer import Stage
from deployments.contract.errors import OverloadedError, TooManyRequestsError
from deployments.keys import NO_KEY
from deployments.router.fair_queue import FairQueue
from deployments.router.metrics import show_audio
from deployments.router.speed import Speed, retry_after_s
from deployments.router.stages import OnStage, ignore_stage
from deployments.router.tickets import KeyRequests, Ticket

# Each recording that is decoded leaves this much of the average length of the earlier ones.
_MEMORY = 0.95


@dataclass(frozen=True)
class Limits:
    """Of one model.

    in_work: requests that have a place at the same time
    in_work_s: seconds of their audio together; a request that is alone may be longer
    waiting: further requests, whatever they wait for
    per_key: requests of one key; None: a key may have as many waiting as are still free
    decoding: recordings that are decoded at the same time
    decoded_s: seconds of decoded audio that may wait for places when a further recording begins to
        be decoded
    wait_s: how long a request may wait
    """

    in_work: int
    in_work_s: float
    waiting: int
    per_key: int | None
    decoding: int
    decoded_s: float
    wait_s: float


class Admission:
    """The requests of one model. docs/architecture.md says why none of them waits for ever.

    speed: of the model
    clock: as `time.monotonic`
    """

    def __init__(
        self,
        model: str,
        limits: Limits,
        speed: Speed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._limits = limits
        self._speed = speed
        self._clock = clock
        self._keys: dict[str, KeyRequests] = {}
        self._decoded: FairQueue[Ticket] = FairQueue()
        self._in_work: set[Ticket] = set()
        self._turns = 0
        # Of the recordings decoded lately; None before the first one.
        self._average_s: float | None = None

    @property
    def requests(self) -> int:
        """How many there are, waiting or in work."""
        return sum(own.requests for own in self._keys.values())

    @property
    def decoding(self) -> int:
        """How many recordings are being decoded."""
        return sum(own.decoding for own in self._keys.values())

    @property
    def decoded_s(self) -> float:
        """Seconds of decoded audio that wait for places."""
        return sum(own.decoded_s for own in self._keys.values())

    @property
    def in_work(self) -> int:
        """How many requests have a place."""
        return len(self._in_work)

    @property
    def in_work_s(self) -> float:
        """Seconds of audio of the requests that have a place."""
        return sum(own.in_work_s for own in self._keys.values())

    def set_limits(self, limits: Limits) -> None:
        """Take over other limits. Requests that are beyond them already go on."""
        self._limits = limits
        self._give_turns()

    @contextmanager
    def request(self, key: str = NO_KEY) -> Iterator[Ticket]:
        """Let a request in, or refuse it before anything is done for it.

        key: the name of the caller's API key

        Raises OverloadedError and TooManyRequestsError, which know when to try again.
        """
        self._refuse(key)
        own = self._keys.setdefault(key, KeyRequests())
        ticket = Ticket(key)
        own.count[ticket.state] += 1
        try:
            yield ticket
        finally:
            own.move(ticket, "ended")
            if not own.requests:
                del self._keys[key]
            self._give_turns()

    @asynccontextmanager
    async def decoding_turn(
        self, ticket: Ticket, on_stage: OnStage = ignore_stage
    ) -> AsyncIterator[None]:
        """Wait until the request may be decoded, which the block does.

        on_stage: called where the request has to wait

        Raises OverloadedError where it has waited for too long.
        """
        own = self._keys[ticket.key]
        own.undecoded.append(ticket)
        try:
            await self._turn(ticket, on_stage, Stage(stage="queued"))
            yield
        finally:
            if ticket.turn.is_set():
                own.decoding -= 1
            else:
                own.undecoded.remove(ticket)
            ticket.turn = asyncio.Event()
            self._give_turns()

    def decoded(self, ticket: Ticket, seconds: float) -> None:
        """A request has been decoded, and has this many seconds of audio."""
        ticket.seconds = seconds
        self._keys[ticket.key].move(ticket, "decoded")
        average_s = seconds if self._average_s is None else self._average_s
        self._average_s = _MEMORY * average_s + (1 - _MEMORY) * seconds

    @asynccontextmanager
    async def place(
        self, ticket: Ticket, on_stage: OnStage = ignore_stage
    ) -> AsyncIterator[None]:
        """Wait for one of the model's places, and hold it in the block.

        on_stage and errors: as in `decoding_turn`
        """
        self._decoded.push(ticket)
        try:
            queued = Stage(stage="queued", duration=ticket.seconds)
            await self._turn(ticket, on_stage, queued)
            yield
        finally:
            if ticket.turn.is_set():
                self._in_work.remove(ticket)
            else:
                self._decoded.remove(ticket)
            self._keys[ticket.key].move(ticket, "ended")
            self._give_turns()

    def wait_s(self, key: str) -> float | None:
        """How long a new request of this key would wait; None where no speed was measured.

        Until it is that request's turn, each other key gets as much as this key has waiting, or all
        that the other one has.
        """
        own_s = self._waiting_s(self._keys.get(key, KeyRequests()))
        return self._time_for(
            sum(min(own_s, self._waiting_s(other)) for other in self._keys.values())
        )

    def _refuse(self, key: str) -> None:
        limits = self._limits
        free = limits.in_work + limits.waiting - self.requests
        if free <= 0:
            all_s = sum(map(self._waiting_s, self._keys.values()))
            raise OverloadedError(
                f"Too many requests wait for model '{self._model}', try again later",
                retry_after_s=retry_after_s(self._time_for(all_s)),
            )
        wait_s = self.wait_s(key)
        if key != NO_KEY and not self._in_share(key, free):
            raise TooManyRequestsError(
                f"Too many requests of this API key wait for model '{self._model}':"
                " let some of them end first",
                retry_after_s=retry_after_s(wait_s),
            )
        if wait_s is not None and wait_s > limits.wait_s:
            raise OverloadedError(
                f"Model '{self._model}' would begin with this request after {wait_s:.0f} s, and a"
                f" request may wait for {limits.wait_s:g} s (request_timeout_s): try again later",
                retry_after_s=retry_after_s(wait_s),
            )

    def _in_share(self, key: str, free: int) -> bool:
        """Whether a key may have one more request.

        By default a key may have as many requests waiting as are still free. A key that floods the
        model gets half of what may wait, two such keys a third each, and so on, so that there is
        room for the first requests of others.
        """
        own = self._keys.get(key, KeyRequests())
        if self._limits.per_key is not None:
            return own.requests < self._limits.per_key
        return self.requests < self._limits.in_work or own.waiting < free

    def _waiting_s(self, own: KeyRequests) -> float:
        """Seconds of audio that wait. A length that is not known yet counts as the average."""
        return own.decoded_s + own.count["undecoded"] * (self._average_s or 0.0)

    def _time_for(self, audio_s: float) -> float | None:
        return audio_s / self._speed.per_s if self._speed.per_s else None

    async def _turn(self, ticket: Ticket, on_stage: OnStage, queued: Stage) -> None:
        self._give_turns()
        if ticket.turn.is_set():
            return
        on_stage(queued)
        started = self._clock()
        limit = self._limits.wait_s
        try:
            async with asyncio.timeout(limit - ticket.waited_s):
                await ticket.turn.wait()
        except TimeoutError:
            raise OverloadedError(
                f"The request has waited for model '{self._model}' for {limit:g} s"
                " (request_timeout_s): try again later"
            ) from None
        finally:
            ticket.waited_s += self._clock() - started

    def _give_turns(self) -> None:
        """Give each place and each turn to be decoded that is free. Called after every change."""
        while ticket := self._next_in_work():
            self._decoded.take(ticket)
            self._in_work.add(ticket)
            self._keys[ticket.key].move(ticket, "in_work")
            ticket.turn.set()
        while own := self._next_to_decode():
            own.decoding += 1
            self._turns += 1
            own.last_turn = self._turns
            own.undecoded.popleft().turn.set()
        show_audio(self._model, self.decoded_s, self.in_work_s)

    def _next_in_work(self) -> Ticket | None:
        """The first request in the fair order whose audio fits beside that in work.

        A long recording that does not fit is passed by shorter ones of other keys, but by no more
        seconds of audio than it has itself. After them, places get free until it fits.
        """
        if len(self._in_work) >= self._limits.in_work:
            return None
        free_s = self._limits.in_work_s - self.in_work_s
        passed: list[Ticket] = []
        for ticket in self._decoded.heads():
            if not self._may_have_place(ticket.key, free_s):
                continue
            if self._in_work and ticket.seconds > free_s:
                passed.append(ticket)
                continue
            if any(other.passed_s + ticket.seconds > other.seconds for other in passed):
                return None
            for other in passed:
                other.passed_s += ticket.seconds
            return ticket
        return None

    def _may_have_place(self, key: str, free_s: float) -> bool:
        """Whether a key holds less than twice what is left, in places and in seconds of audio.

        So one key alone holds about two thirds, which is more than replicas decode at the same
        time, and others find a place at once, however long that key's recordings are.
        """
        own = self._keys[key]
        free = self._limits.in_work - len(self._in_work)
        in_share = own.count["in_work"] < 2 * free and own.in_work_s < 2 * free_s
        return in_share or key == NO_KEY or not self._in_work

    def _next_to_decode(self) -> KeyRequests | None:
        """The key with the least decoded audio that waits, among those that may have more.

        So each key has something among which the fair order can choose, however long the recordings
        of other keys are. A key may have as much audio waiting as is still free.
        """
        free = self._limits.decoding - self.decoding
        if free <= 0:
            return None
        free_s = self._limits.decoded_s - self.decoded_s
        return min(
            (
                own
                for key, own in self._keys.items()
                if own.undecoded
                and own.decoded_s < free_s
                and _may_decode(key, own, free)
            ),
            key=lambda own: (own.decoded_s, own.decoding, own.last_turn),
            default=None,
        )


def _may_decode(key: str, own: KeyRequests, free: int) -> bool:
    """Whether a key may have one more of the free turns to be decoded.

    A key that has turns leaves at least half as many to the others. So files that take minutes to
    decode hold up the other files of their own key alone.
    """
    return key == NO_KEY or not own.decoding or own.decoding < 2 * (free - 1)
