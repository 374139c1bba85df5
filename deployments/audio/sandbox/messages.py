"""What client, zygote and decoder tell each other.

A job is one message on the control socket, with four descriptors:

    job     a socket on which the zygote tells how the decoder ended; that the client shuts it
            down for writing means that the decoder shall be killed
    reply   a socket on which the decoder tells what it found
    input   the recording, read-only
    output  an empty file, in which the waveform is written: int16 at 16 kHz

Nobody but the decoder keeps `reply`, and nobody but the zygote keeps `job`. So when the client has
met the end of both, nobody reads the recording any more, whatever has died meanwhile.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from math import isfinite

from deployments.audio.sandbox.limits import Limits
from deployments.contract.errors import (
    AudioTooComplexError,
    AudioUrlError,
    InvalidAudioError,
    InvalidRequestError,
    OverloadedError,
    WhisperServeError,
)

MAX_MESSAGE_BYTES = 1 << 16
_MOST_WARNINGS, _LONGEST_TEXT = 100, 4000
# An error by name and place. Anything else could forge fields of the log.
_PLACE = re.compile(r"\w{1,100}@[\w./<>-]{1,200}(:\d{1,9})?", re.ASCII)
_ERRORS: dict[str, type[WhisperServeError]] = {
    error.__name__: error
    for error in (
        AudioTooComplexError,
        AudioUrlError,
        InvalidAudioError,
        InvalidRequestError,
        OverloadedError,
    )
}


@dataclass(frozen=True)
class Job:
    """One file to decode; the fields are arguments of `decode_audio`.

    remote: whether the file was downloaded, so that its URL is at fault where it holds a text
    limits: of the decoder
    """

    max_seconds: float
    track: int | str | None = None
    channel: int | None = None
    remote: bool = False
    limits: Limits = field(default_factory=Limits)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Job":
        fields = json.loads(message)
        return cls(**fields | {"limits": Limits(**fields["limits"])})


@dataclass(frozen=True)
class Ended:
    """How a decoder's process ended.

    signal: 0 where it ended by itself
    cpu_s: how much time of a CPU it took
    """

    signal: int
    cpu_s: float

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Ended":
        return cls(**json.loads(message))


@dataclass(frozen=True)
class Reply:
    """What a decoder found beside the samples, or why there are none.

    start_s, warnings: as in `DecodedAudio`
    error: of the contract, for the caller
    failure: an error that is not foreseen, by its name and place, as `KeyError@mono.py:57`
    """

    start_s: float = 0.0
    warnings: tuple[str, ...] = ()
    error: WhisperServeError | None = None
    failure: str | None = None

    def to_bytes(self) -> bytes:
        body: dict[str, object] = {"start_s": self.start_s, "warnings": self.warnings}
        if self.error is not None:
            # The text without the prefix, which belongs to the type.
            body = {"error": type(self.error).__name__, "text": self.error.args[0]}
        elif self.failure is not None:
            body = {"failure": self.failure}
        return json.dumps(body).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Reply":
        """Raises ValueError where no decoder of ours can have written the message."""
        try:
            body = json.loads(message)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        match body:
            case {"error": str(name), "text": str(text)} if name in _ERRORS:
                return cls(error=_ERRORS[name](_readable(text)))
            case {"failure": str(failure)} if _PLACE.fullmatch(failure):
                return cls(failure=failure)
            case {"start_s": float(start_s), "warnings": list(warnings)} if isfinite(
                start_s
            ) and all(isinstance(text, str) for text in warnings):
                kept = warnings[:_MOST_WARNINGS]
                return cls(start_s, tuple(_readable(text) for text in kept))
        raise ValueError("not a reply")


def _readable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON may hold and UTF-8 cannot."""
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()
