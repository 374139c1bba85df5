"""Calls to an actor that may die while it works: errors translated, and one retry."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from ray.exceptions import (
    ActorUnavailableError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from deployments.contract.answer import SegmentEvent
from deployments.contract.errors import WhisperServeError

_Event = TypeVar("_Event")


class ReplicaLostError(Exception):
    """The replica was lost with the request.

    died: whether its process ended by itself; otherwise it could not be reached, or its machine was
        taken away
    replica: its actor's id, where Ray tells it
    """

    def __init__(self, died: bool = True, replica: str | None = None) -> None:
        super().__init__(died, replica)
        self.died = died
        self.replica = replica


@contextmanager
def ray_errors_translated() -> Iterator[None]:
    """Raise the contract's error where an actor raised one, and ReplicaLostError where it died."""
    try:
        yield
    except RayTaskError as error:
        # Ray's error is also an instance of the actor's error, but its text is a traceback.
        if isinstance(error.cause, WhisperServeError):
            raise error.cause from None
        raise
    except RayActorError as error:
        taken = isinstance(error, ActorUnavailableError) or error.preempted
        raise ReplicaLostError(not taken, error.actor_id) from None
    except WorkerCrashedError:
        raise ReplicaLostError from None


async def retried_once(
    attempt: Callable[[], AsyncGenerator[_Event, None]], on_retry: Callable[[], None]
) -> AsyncGenerator[_Event, None]:
    """The events of an attempt, and of a second one if the actor of the first died.

    Transcription is idempotent, so a second attempt is safe. It would repeat segments, so there is
    none once a segment has gone out.

    attempt: starts the work and gives its events; raises ReplicaLostError where the actor dies
    on_retry: called before the second attempt

    Raises ReplicaLostError where no further attempt is made, and what an attempt raises.
    """
    segment_went_out = False
    try:
        async with aclosing(attempt()) as events:
            async for event in events:
                segment_went_out |= isinstance(event, SegmentEvent)
                yield event
        return
    except ReplicaLostError:
        if segment_went_out:
            raise
    on_retry()
    async with aclosing(attempt()) as events:
        async for event in events:
            yield event
