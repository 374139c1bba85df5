"""Who may wait, is decoded and is in work, and who is refused. No Ray, no audio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.contract.answer import Stage
from deployments.contract.errors import (
    OverloadedError,
    TooManyRequestsError,
    WhisperServeError,
)
from deployments.router.admission import Admission, Limits
from deployments.router.speed import Speed
from deployments.router.tickets import Ticket

LIMITS = Limits(
    in_work=2,
    in_work_s=100.0,
    waiting=8,
    per_key=None,
    decoding=2,
    decoded_s=100.0,
    wait_s=3600.0,
)


class Client:
    """One request, which goes on when it is told to, and stops where it has to wait.

    key: of its caller
    seconds: of its audio
    """

    def __init__(
        self, admission: Admission, key: str = "a", seconds: float = 10.0
    ) -> None:
        self.key, self.seconds = key, seconds
        self.at = "arriving"
        self.stages: list[Stage] = []
        self.error: WhisperServeError | None = None
        self.ticket: Ticket | None = None
        self.is_fetched, self.is_decoded, self.is_done = (
            asyncio.Event() for _ in range(3)
        )
        self._admission = admission
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        admission, on_stage = self._admission, self.stages.append
        try:
            with admission.request(self.key) as self.ticket:
                self.at = "fetching"
                await self.is_fetched.wait()
                self.at = "waiting to be decoded"
                async with admission.decoding_turn(self.ticket, on_stage):
                    self.at = "decoding"
                    await self.is_decoded.wait()
                    admission.decoded(self.ticket, self.seconds)
                self.at = "queued"
                async with admission.place(self.ticket, on_stage):
                    self.at = "in work"
                    await self.is_done.wait()
            self.at = "done"
        except WhisperServeError as error:
            self.error = error
            self.at = "refused"
        finally:
            if self.at not in ("done", "refused"):
                self.at = "cancelled"


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def clients(
    limits: Limits = LIMITS, speed: Speed | None = None
) -> AsyncIterator[tuple[Admission, Callable[..., Client]]]:
    """The admission, and what sends a request to it; all requests end with the block."""
    admission = Admission("base", limits, speed or Speed())
    sent: list[Client] = []

    def send(key: str = "a", seconds: float = 10.0, until: str = "queued") -> Client:
        client = Client(admission, key, seconds)
        for stop, event in (
            ("fetching", client.is_fetched),
            ("decoding", client.is_decoded),
        ):
            if until == stop:
                break
            event.set()
        sent.append(client)
        return client

    try:
        yield admission, send
    finally:
        for client in sent:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in sent), return_exceptions=True)
        assert (admission.requests, admission.decoding) == (0, 0)
        assert (admission.decoded_s, admission.in_work, admission.in_work_s) == (
            0,
            0,
            0,
        )


def places(*sent: Client) -> list[str]:
    return [client.at for client in sent]


def known_speed(per_s: float) -> Speed:
    """A model that does so many seconds of audio a second."""
    times = iter([0.0, 0.0, 1.0])
    speed = Speed(lambda: next(times))
    speed.end(speed.begin(), per_s)
    return speed


async def test_places_are_given_in_order_and_too_many_requests_refused() -> None:
    async with clients(replace(LIMITS, in_work=1, waiting=2)) as (_, send):
        first, second, third = send("-"), send("-"), send("-")
        await settle()
        assert places(first, second, third) == ["in work", "queued", "queued"]
        fourth = send("-")
        await settle()
        assert isinstance(fourth.error, OverloadedError)
        assert str(fourth.error) == (
            "Too many requests wait for model 'base', try again later"
        )
        first.is_done.set()
        await settle()
        assert places(first, second, third) == ["done", "in work", "queued"]


async def test_requests_that_are_fetched_count_as_waiting() -> None:
    async with clients(replace(LIMITS, in_work=1, waiting=1)) as (_, send):
        send("-", until="fetching"), send("-", until="fetching")
        await settle()
        refused = send("-")
        await settle()
        assert refused.at == "refused"


async def test_the_audio_in_work_is_bounded() -> None:
    async with clients(replace(LIMITS, in_work=16)) as (admission, send):
        fitting = [send("-", 40.0), send("-", 40.0)]
        third = send("-", 40.0)
        await settle()
        assert places(*fitting, third) == ["in work", "in work", "queued"]
        assert third.stages == [Stage(stage="queued", duration=40.0)]
        fitting[0].is_done.set()
        await settle()
        assert third.at == "in work"
        assert admission.in_work_s == 80.0


async def test_a_recording_longer_than_the_bound_is_admitted_alone() -> None:
    async with clients() as (_, send):
        short = send(seconds=1.0)
        await settle()
        long = send(seconds=500.0)
        await settle()
        assert long.at == "queued"
        short.is_done.set()
        await settle()
        assert long.at == "in work"
        beside = send(seconds=1.0)
        await settle()
        assert beside.at == "queued"


async def test_a_long_recording_is_passed_by_no_more_audio_than_it_has_itself() -> None:
    limits = replace(LIMITS, in_work=100, waiting=100, decoded_s=1000.0)
    async with clients(limits) as (_, send):
        holder = send("holder", 60.0)
        await settle()
        long = send("long", 50.0)
        await settle()
        short = [send("short", 5.0) for _ in range(40)]
        for _ in range(40):
            await settle()
            for client in short:
                if client.at == "in work":
                    client.is_done.set()
        assert long.at == "queued"
        # Nine of them are before it in the fair order, and ten pass it after its turn has come.
        assert places(*short).count("done") == 19
        holder.is_done.set()
        await settle()
        assert long.at == "in work"


async def test_a_flood_by_one_key_leaves_room_for_another() -> None:
    async with clients() as (_, send):
        flood = [send("flood") for _ in range(20)]
        await settle()
        # Two in work, and half of the eight that may wait.
        assert places(*flood).count("in work") == 2
        assert places(*flood).count("queued") == 4
        refused = [client.error for client in flood if client.at == "refused"]
        assert {type(error) for error in refused} == {TooManyRequestsError}
        assert str(refused[0]) == (
            "Too many requests of this API key wait for model 'base':"
            " let some of them end first"
        )
        other = send("other")
        await settle()
        assert other.at == "queued"
        flood[0].is_done.set()
        flood[1].is_done.set()
        await settle()
        assert other.at == "in work"


@pytest.mark.parametrize(("seconds", "held"), [(1.0, 11), (10.0, 7)])
async def test_a_flood_by_one_key_leaves_places_and_audio_to_another(
    seconds: float, held: int
) -> None:
    async with clients(replace(LIMITS, in_work=16, waiting=30)) as (_, send):
        flood = [send("flood", seconds) for _ in range(30)]
        await settle()
        assert places(*flood).count("in work") == held
        other = send("other", 30.0)
        await settle()
        assert other.at == "in work"


async def test_callers_without_a_key_may_hold_all_places() -> None:
    async with clients(replace(LIMITS, in_work=16, waiting=30)) as (_, send):
        sent = [send("-", 1.0) for _ in range(30)]
        await settle()
        assert places(*sent).count("in work") == 16


async def test_callers_without_a_key_have_no_limit_of_their_own() -> None:
    limits = replace(LIMITS, per_key=1)
    async with clients(limits) as (_, send):
        sent = [send("-") for _ in range(11)]
        await settle()
        assert places(*sent).count("refused") == 1
        assert isinstance(sent[-1].error, OverloadedError)


async def test_a_key_may_have_as_many_requests_as_the_configuration_says() -> None:
    async with clients(replace(LIMITS, per_key=3)) as (_, send):
        sent = [send("a") for _ in range(5)]
        other = send("b")
        await settle()
        assert [type(client.error) for client in sent] == [
            type(None),
            type(None),
            type(None),
            TooManyRequestsError,
            TooManyRequestsError,
        ]
        assert other.error is None


async def test_keys_share_the_audio_in_work() -> None:
    limits = replace(LIMITS, in_work=1, waiting=200, decoded_s=10_000.0)
    async with clients(limits) as (_, send):
        long = [send("long", 50.0) for _ in range(20)]
        short = [send("short", 5.0) for _ in range(50)]
        await settle()
        done = {"long": 0.0, "short": 0.0}
        for _ in range(33):
            [running] = [c for c in long + short if c.at == "in work"]
            running.is_done.set()
            await settle()
            done[running.key] += running.seconds
        assert abs(done["long"] - done["short"]) <= 100


async def test_as_many_are_decoded_at_once_as_there_are_cores() -> None:
    async with clients() as (_, send):
        sent = [send("-", until="decoding") for _ in range(4)]
        await settle()
        assert places(*sent) == ["decoding"] * 2 + ["waiting to be decoded"] * 2
        assert sent[2].stages == [Stage(stage="queued")]
        sent[0].is_decoded.set()
        await settle()
        assert places(*sent[:3]) == ["in work", "decoding", "decoding"]


@pytest.mark.parametrize("cores", [2, 3, 4, 8, 32])
async def test_a_key_leaves_turns_to_be_decoded_to_the_others(cores: int) -> None:
    limits = replace(LIMITS, decoding=cores, waiting=300, decoded_s=10_000.0)
    async with clients(limits) as (admission, send):
        for _ in range(cores):
            send("flood", until="decoding")
        await settle()
        assert cores / 2 <= admission.decoding < cores
        victim = send("victim", until="decoding")
        await settle()
        assert victim.at == "decoding"


async def test_with_one_core_a_key_that_is_alone_is_decoded() -> None:
    async with clients(replace(LIMITS, decoding=1)) as (_, send):
        alone = send("alone", until="decoding")
        await settle()
        assert alone.at == "decoding"


async def test_decoding_waits_while_enough_decoded_audio_waits() -> None:
    async with clients(replace(LIMITS, in_work=1, decoding=1)) as (admission, send):
        running = send("a", 10.0)
        waiting = [send("a", 40.0) for _ in range(4)]
        await settle()
        # The key may have as much waiting as is still free: 40 s is less than 60 s, 80 s is not.
        assert places(*waiting) == ["queued"] * 2 + ["waiting to be decoded"] * 2
        assert admission.decoded_s == 80.0
        other = send("b", 40.0)
        await settle()
        assert other.at == "queued"
        running.is_done.set()
        await settle()
        # 80 s wait again, of which the one key has 40 and the other one 40.
        assert admission.decoded_s == 80.0


async def test_a_key_with_nothing_decoded_is_decoded_before_the_others() -> None:
    async with clients(replace(LIMITS, in_work=1, decoding=1, waiting=30)) as (_, send):
        flood = [send("flood", 1.0, until="decoding") for _ in range(10)]
        await settle()
        other = send("other", 1.0)
        flood[0].is_decoded.set()
        flood[1].is_decoded.set()
        await settle()
        assert other.at in ("queued", "in work")
        assert places(*flood[2:]).count("waiting to be decoded") == 7


@pytest.mark.parametrize(
    "until", ["fetching", "waiting to be decoded", "decoding", "queued", "in work"]
)
async def test_a_caller_who_leaves_gives_everything_back(until: str) -> None:
    async with clients(replace(LIMITS, in_work=1, decoding=1)) as (admission, send):
        before = []
        if until in ("waiting to be decoded", "queued"):
            before = [send("-", until="decoding" if "decoded" in until else "queued")]
        await settle()
        stop = {"waiting to be decoded": "decoding", "in work": "queued"}
        leaving = send("-", until=stop.get(until, until))
        await settle()
        assert leaving.at == until
        leaving.task.cancel()
        await settle()
        assert leaving.at == "cancelled"
        assert admission.requests == len(before)
        for client in before:
            client.task.cancel()
        next_one = send("-")
        await settle()
        assert next_one.at == "in work"


async def test_a_turn_that_comes_as_the_caller_leaves_goes_to_the_next_one() -> None:
    async with clients(replace(LIMITS, in_work=1)) as (_, send):
        first, second, third = send(), send(), send()
        await settle()
        first.is_done.set()
        second.task.cancel()
        await settle()
        assert places(first, second, third) == ["done", "cancelled", "in work"]


async def test_a_request_that_fails_between_its_turns_gives_everything_back() -> None:
    admission = Admission("base", LIMITS, Speed())
    with pytest.raises(RuntimeError), admission.request("a") as ticket:
        async with admission.decoding_turn(ticket):
            admission.decoded(ticket, 10.0)
        assert admission.decoded_s == 10.0
        raise RuntimeError
    assert (admission.requests, admission.decoded_s) == (0, 0.0)


async def test_a_request_waits_no_longer_than_it_may() -> None:
    async with clients(replace(LIMITS, in_work=1, wait_s=0.05)) as (_, send):
        send()
        await settle()
        late = send()
        async with asyncio.timeout(60):
            await late.task
        assert isinstance(late.error, OverloadedError)
        assert str(late.error) == (
            "The request has waited for model 'base' for 0.05 s (request_timeout_s):"
            " try again later"
        )


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    limits = replace(LIMITS, in_work=1, waiting=100, wait_s=15.0)
    async with clients(limits, known_speed(2.0)) as (admission, send):
        for _ in range(4):
            send("a")
        await settle()
        assert admission.wait_s("a") == pytest.approx(15.0)
        await_more = send("a")
        await settle()
        assert await_more.error is None
        refused = send("a")
        await settle()
        assert isinstance(refused.error, OverloadedError)
        assert str(refused.error).startswith(
            "Model 'base' would begin with this request after 20 s, and a request may wait"
            " for 15 s (request_timeout_s)"
        )
        assert refused.error.retry_after_s in range(16, 25)
        # The fair order serves another key first, so its request need not wait so long.
        assert admission.wait_s("b") == 0.0
        other = send("b")
        await settle()
        assert other.error is None


async def test_the_wait_counts_recordings_of_unknown_length_as_the_average() -> None:
    async with clients(replace(LIMITS, in_work=1), known_speed(2.0)) as (
        admission,
        send,
    ):
        send("a", 10.0)
        await settle()
        for _ in range(3):
            send("a", until="fetching")
        await settle()
        assert admission.wait_s("a") == pytest.approx(15.0)


async def test_who_is_refused_learns_from_the_measured_speed_when_to_return() -> None:
    limits = replace(LIMITS, in_work=1, waiting=4)
    async with clients(limits, known_speed(2.0)) as (_, send):
        sent = [send("-") for _ in range(6)]
        await settle()
        error = sent[-1].error
        assert isinstance(error, OverloadedError)
        # 40 s of audio wait.
        assert error.retry_after_s in range(16, 25)
    async with clients(limits) as (_, send):
        sent = [send("-") for _ in range(6)]
        await settle()
        error = sent[-1].error
        assert error is not None and error.retry_after_s == 10


async def test_other_limits_hold_at_once() -> None:
    async with clients(replace(LIMITS, in_work=1)) as (admission, send):
        sent = [send("-") for _ in range(3)]
        await settle()
        admission.set_limits(replace(LIMITS, in_work=2))
        await settle()
        assert places(*sent) == ["in work", "in work", "queued"]
        admission.set_limits(replace(LIMITS, in_work=1))
        sent[0].is_done.set()
        await settle()
        assert places(*sent) == ["done", "in work", "queued"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "fetched", "decoded", "done", "leave", "limits"]),
        st.integers(0, 30),
        st.sampled_from(["a", "b", "-"]),
        st.sampled_from([0.0, 0.1, 5.0, 40.0, 99.9, 100.0, 300.0]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_the_bounds_hold_and_every_request_has_its_turn(
    steps: list[tuple[str, int, str, float]],
) -> None:
    asyncio.run(_check(steps))


async def _check(steps: list[tuple[str, int, str, float]]) -> None:
    limits = LIMITS
    admission = Admission("base", limits, Speed())
    sent: list[Client] = []

    def bounds_hold() -> None:
        alive = [c for c in sent if c.at not in ("done", "refused", "cancelled")]
        assert admission.requests == len(alive)
        working = [c for c in alive if c.at == "in work"]
        assert admission.in_work == len(working)
        assert admission.in_work_s == pytest.approx(sum(c.seconds for c in working))
        assert admission.decoding == sum(c.at == "decoding" for c in alive)
        queued = [c for c in alive if c.at == "queued"]
        assert admission.decoded_s == pytest.approx(sum(c.seconds for c in queued))
        assert len(working) <= LIMITS.in_work
        assert len(working) == 1 or admission.in_work_s <= LIMITS.in_work_s
        assert admission.decoding <= LIMITS.decoding
        # Each recording that is decoded began below the bound, and only so many begin at once.
        longest = max((c.seconds for c in queued), default=0.0)
        assert admission.decoded_s <= LIMITS.decoded_s + LIMITS.decoding * longest
        # Nobody waits for a place or a turn that is free.
        if queued:
            assert working

    for what, number, key, seconds in steps:
        if what == "send":
            sent.append(Client(admission, key, seconds))
        elif what == "limits":
            fewer = replace(LIMITS, in_work=1 + number % 2, in_work_s=50.0 + number)
            admission.set_limits(fewer)
        elif sent:
            client = sent[number % len(sent)]
            if what == "leave":
                client.task.cancel()
            else:
                {
                    "fetched": client.is_fetched,
                    "decoded": client.is_decoded,
                    "done": client.is_done,
                }[what].set()
        await settle()
        bounds_hold()

    # Everyone who was let in and stays comes to the end.
    for client in sent:
        client.is_fetched.set()
        client.is_decoded.set()
        client.is_done.set()
    for _ in range(10 * len(sent)):
        await settle()
    assert {client.at for client in sent} <= {"done", "refused", "cancelled"}
    assert admission.requests == 0
