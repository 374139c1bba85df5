"""What a request is answered with: the result, the events on the way to it, or an error."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _nan_to_none(value: Any) -> Any:
    # JSON has no NaN and no infinities.
    return None if value is None or not math.isfinite(value) else float(value)


def _strip(value: str) -> str:
    return value.strip()


Number = Annotated[float | None, BeforeValidator(_nan_to_none)]
Text = Annotated[str, BeforeValidator(_strip)]


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


class SegmentWord(_Answered):
    """One word as `whisper.transcribe` gives it, with its blank in front; times in seconds."""

    word: str
    start: float
    end: float
    probability: Number


class Segment(_Answered):
    """One segment as `whisper.transcribe` gives it; times in seconds.

    unstripped_text: the text with the blank in front that Whisper gives it, for doors that join
        texts; not part of the JSON
    words: present exactly when the request asked for word_timestamps; joined, they are the text
    """

    id: int
    seek: int
    start: float
    end: float
    text: Text
    unstripped_text: str = Field("", exclude=True, repr=False)
    tokens: list[int]
    temperature: float
    avg_logprob: Number
    compression_ratio: Number
    no_speech_prob: Number
    words: list[SegmentWord] | None = Field(
        None, exclude_if=lambda words: words is None
    )


class Word(_Answered):
    """One word and its time in seconds."""

    word: Text
    start: float
    end: float
    probability: Number


class Timings(_Answered):
    """Where the time of a request went, in seconds.

    download: reading the audio from its host
    decode: from the audio's own format to a waveform
    model_start: waiting for a replica of the model to start
    queue: waiting in the Router (to fetch the file, to decode it, for a place of the model, for a
        replica with room) and in the replica for slots of its engine
    transcribe: the rest of the time in the replica
    """

    download: float = 0.0
    decode: float = 0.0
    model_start: float = 0.0
    queue: float = 0.0
    transcribe: float = 0.0


class Chunk(_Answered):
    """A piece of the recording that was transcribed by itself, in seconds."""

    start: float
    end: float


class Answer(_Answered):
    """The result of a transcription.

    word_timestamps: the words of all segments, stripped; present exactly when the request asked
        for them
    chunks: present exactly when the request had a `chunking_strategy`; the result is that of
        `whisper.transcribe` on each of these pieces alone, in the one language
    detected_language: null where no speech was found in which to detect it
    language_probability: of the detected language; null where the request named the language
    duration: seconds of audio
    audio_start: seconds by which the audio starts later than the file's other streams; add it to
        a time of the answer for the time in a video
    batch_windows: how many windows decoded together, on average over the request's steps
    warnings: what the caller should know of the result
    """

    segments: list[Segment]
    word_timestamps: list[Word] | None = Field(
        None, exclude_if=lambda words: words is None
    )
    chunks: list[Chunk] | None = Field(None, exclude_if=lambda chunks: chunks is None)
    detected_language: str | None
    language_probability: Number = None
    transcription: Text
    device: Literal["cuda", "cpu"]
    model: str
    duration: float
    audio_start: float = 0.0
    timings: Timings
    batch_windows: float = 0.0
    warnings: list[str] = []
    request_id: str


class ErrorAnswer(_Answered):
    """What HTTP answers when a request fails; the status says whose fault it is."""

    error: str
    type: str


class Stage(_Answered):
    """An event: what the service begins to do for the request.

    duration: seconds of audio, once they are known: from the end of `decoding` on
    windows_ahead: with `queued`, how many windows wait for slots of the model before this request
    """

    event: Literal["stage"] = "stage"
    stage: Literal[
        "queued", "downloading", "decoding", "starting_model", "transcribing"
    ]
    duration: float | None = Field(None, exclude_if=lambda value: value is None)
    windows_ahead: int | None = Field(None, exclude_if=lambda value: value is None)


class Progress(_Answered):
    """An event: how far the work has come, in seconds of audio."""

    event: Literal["progress"] = "progress"
    done: float
    total: float


class SegmentEvent(_Answered):
    """An event: the next segment, as it will stand in the result."""

    event: Literal["segment"] = "segment"
    segment: Segment


class Result(_Answered):
    """The last event of a stream; it holds the whole answer."""

    event: Literal["result"] = "result"
    result: Answer


Event = Stage | Progress | SegmentEvent | Result


class ErrorEvent(_Answered):
    """An event, the last of a stream over HTTP that fails: what the answer would have been.

    status: the HTTP status that a request without a stream is answered with
    """

    event: Literal["error"] = "error"
    error: str
    type: str
    status: int


class ServedModel(_Answered):
    """One model of the application.

    parameters: how many; null for weights of the user's own, as `multilingual` is
    weights_cached: whether the weights are on this machine
    running_replicas: how many replicas are up
    slots: windows that all running replicas can decode together; null where none is loaded
    """

    name: str
    aliases: list[str]
    default: bool
    parameters: int | None
    multilingual: bool | None
    weights_cached: bool
    running_replicas: int
    slots: int | None
    slots_in_use: int | None
    windows_waiting: int | None


class Health(_Answered):
    """Says that the application is up, and names it and its default model."""

    application: str
    status: Literal["ok"] = "ok"
    default_model: str


class Ready(_Answered):
    """Says that requests to the default model need not wait for its start."""

    status: Literal["ready"] = "ready"


def segments_of(segments: list[dict[str, Any]], words: bool) -> list[Segment]:
    """Segments of `whisper.transcribe` as plain numbers and text.

    words: whether the request asked for them; Whisper also gives an empty list for a segment that
        it cleared
    """
    return [
        Segment.model_validate(
            segment
            | {
                "unstripped_text": segment["text"],
                "words": segment.get("words", []) if words else None,
            }
        )
        for segment in segments
    ]


def words_of(segments: list[Segment]) -> list[Word]:
    """The words of all segments, in order."""
    return [
        Word(**word.model_dump())
        for segment in segments
        for word in segment.words or []
    ]
