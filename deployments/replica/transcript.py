"""A replica's part of a transcription, from which the router makes the contract's answer."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from deployments.contract.answer import (
    Chunk,
    Progress,
    Segment,
    SegmentEvent,
    Stage,
    Word,
)


@dataclass(frozen=True)
class Transcript:
    """The model's part of an answer.

    words: None where the request did not ask for them
    language: None where no speech was found, so that none could be detected
    language_probability: None where the request named the language
    queue_s: seconds that the request's windows waited for slots, or, in chunks, until the work on
        the first one began; the router adds its wait for a replica with room
    transcribe_s: seconds of the rest of the work
    batch_windows: windows that decoded together, on average over the request's steps
    chunks: the pieces that were transcribed, where the request asked for chunks
    model_start_s: seconds that the router waited for the replica, which the router fills in
    """

    segments: list[Segment]
    words: list[Word] | None
    text: str
    language: str | None
    language_probability: float | None
    device: Literal["cuda", "cpu"]
    queue_s: float
    transcribe_s: float
    batch_windows: float
    warnings: list[str]
    chunks: list[Chunk] | None = None
    model_start_s: float = 0.0


class Reply(Enum):
    """A replica's first reply to a request."""

    ACCEPTED = "accepted"
    # It has as many requests as it will soon decode; how many windows wait follows in a Stage.
    FULL = "full"


# What a replica yields for a request that it has accepted; the transcript comes last.
ReplicaEvent = Stage | Progress | SegmentEvent | Transcript


@dataclass(frozen=True)
class SlotUse:
    """How many windows a replica can decode together, how many it does, and how many wait."""

    slots: int
    slots_in_use: int
    windows_waiting: int
