"""The requests of one model, and what those of each API key do."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

State = Literal["undecoded", "decoded", "in_work", "ended"]


@dataclass(eq=False)
class Ticket:
    """One request on its way.

    key: the name of the caller's API key
    seconds: of audio; 0 until the request is decoded
    waited_s: how long it has waited for its download and for its turns
    passed_s: seconds of audio that got places before it because they fitted and it did not
    turn: set when it may be decoded, and again when it has a place
    """

    key: str
    state: State = "undecoded"
    seconds: float = 0.0
    waited_s: float = 0.0
    passed_s: float = 0.0
    turn: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class KeyRequests:
    """The requests of one key.

    count: by state
    decoded_s: seconds of decoded audio that wait for places
    in_work_s: seconds of audio that have places
    undecoded: those that wait to be decoded, in order
    decoding: how many are being decoded
    last_turn: number of the turn in which one was last decoded
    """

    count: Counter[str] = field(default_factory=Counter)
    decoded_s: float = 0.0
    in_work_s: float = 0.0
    undecoded: deque[Ticket] = field(default_factory=deque)
    decoding: int = 0
    last_turn: int = 0

    @property
    def requests(self) -> int:
        return self.waiting + self.count["in_work"]

    @property
    def waiting(self) -> int:
        return self.count["undecoded"] + self.count["decoded"]

    def move(self, ticket: Ticket, state: State) -> None:
        """Change the state of one of them."""
        left, ticket.state = ticket.state, state
        self.count[left] -= 1
        self.count[state] += 1
        # Exactly 0 after the last one, whatever sums of fractions give.
        if left == "decoded":
            left_s = self.decoded_s - ticket.seconds
            self.decoded_s = left_s if self.count[left] else 0.0
        elif left == "in_work":
            left_s = self.in_work_s - ticket.seconds
            self.in_work_s = left_s if self.count[left] else 0.0
        if state == "decoded":
            self.decoded_s += ticket.seconds
        elif state == "in_work":
            self.in_work_s += ticket.seconds
