"""The one contract of all doors: what a request may hold and what an answer holds.

The description of every request field states its rule; the same words tell a caller who broke it.
"""

import base64
import binascii
import math
import re
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from deployments import catalog
from deployments.contract.errors import InvalidRequestError

MAX_BASE64_AUDIO_BYTES = 32 << 20
_MAX_TEMPERATURES = 100
_MAX_ECHO = 60
# The tokenizer raises on these.
_SPECIAL_TOKEN = re.compile(r"<\|[a-z0-9.]+\|>")


def _whole_float_to_int(value: Any) -> Any:
    # JSON knows one kind of number: 5.0 is how some clients write 5.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _split_numbers(value: Any) -> Any:
    # Whisper's command line writes lists as "1,2,3"; "" is the empty list.
    if not isinstance(value, str):
        return value
    return [float(part) for part in value.split(",")] if value.strip() else []


def _well_formed(value: str) -> str:
    value.encode()  # A lone surrogate is no text: neither tokenizers nor JSON take it.
    return value


def _broken_rule(text: str) -> PydanticCustomError:
    return PydanticCustomError("contract", "{text}", {"text": text})


UnicodeText = Annotated[str, AfterValidator(_well_formed)]
WholeNumber = Annotated[int, BeforeValidator(_whole_float_to_int)]
GroupSize = Annotated[WholeNumber, Field(ge=1, le=10)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[
    list[Annotated[WholeNumber, Field(ge=-1)]],
    BeforeValidator(_split_numbers, json_schema_input_type=str | list[int]),
]
Seconds = Annotated[
    list[Annotated[float, Field(ge=0)]],
    BeforeValidator(_split_numbers, json_schema_input_type=str | list[float]),
]


class TranscriptionRequest(BaseModel):
    """What to transcribe, and Whisper's options for it."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True
    )

    audio: UnicodeText | None = Field(
        None, description="URL of an audio or video file (this or audio_base64)"
    )
    audio_base64: str | None = Field(
        None, description="must be a base64 string of at most 32 MiB decoded"
    )
    model: UnicodeText | None = Field(
        None, description="must be the name of a served model; null: the default one"
    )
    language: UnicodeText | None = Field(
        None, description="must be a language code or English name, or null to detect"
    )
    temperature: Fraction = Field(0.0, description="must be between 0 and 1")
    beam_size: GroupSize | None = Field(
        5, description="must be an integer between 1 and 10"
    )
    word_timestamps: bool = Field(False, description="must be true or false")
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="must be 'transcribe' or 'translate'"
    )
    temperature_increment_on_fallback: Fraction | None = Field(
        0.2, description="must be between 0 and 1, or null for no fallback"
    )
    best_of: GroupSize | None = Field(
        5, description="must be an integer between 1 and 10, or null"
    )
    patience: Annotated[float, Field(gt=0)] | None = Field(
        None, description="must be greater than 0, or null"
    )
    length_penalty: Fraction | None = Field(
        None, description="must be between 0 and 1, or null"
    )
    suppress_tokens: Tokens = Field(
        [-1],
        description="must be token ids, as a list or a comma-separated string;"
        " -1 stands for the usual non-speech symbols",
    )
    initial_prompt: Annotated[UnicodeText, Field(max_length=100_000)] | None = Field(
        None,
        description="must be a string of at most 100,000 characters, without special"
        " tokens (<|en|>), or null",
    )
    carry_initial_prompt: bool = Field(False, description="must be true or false")
    condition_on_previous_text: bool = Field(True, description="must be true or false")
    compression_ratio_threshold: float | None = Field(
        2.4, description="must be a number, or null to switch the rule off"
    )
    logprob_threshold: float | None = Field(
        -1.0, description="must be a number, or null to switch the rule off"
    )
    no_speech_threshold: float | None = Field(
        0.6, description="must be a number, or null to switch the rule off"
    )
    hallucination_silence_threshold: Annotated[float, Field(gt=0)] | None = Field(
        None, description="must be greater than 0, or null; needs word_timestamps"
    )
    clip_timestamps: Seconds = Field(
        [0.0],
        description="must be seconds (start,end,start,...), as a list or a"
        " comma-separated string",
    )
    prepend_punctuations: UnicodeText = Field(
        "\"'“¿([{-", description="must be a string of punctuation marks"
    )
    append_punctuations: UnicodeText = Field(
        "\"'.。,，!！?？:：”)]}、", description="must be a string of punctuation marks"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, payload: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in payload.items()
            if value is not None
            or type(None) in get_args(cls.model_fields[key].annotation)
        }

    @model_validator(mode="after")
    def _rules_between_fields(self) -> "TranscriptionRequest":
        if self.audio is not None and self.audio_base64 is not None:
            raise _broken_rule("Give either 'audio' or 'audio_base64', not both")
        if self.audio is None and self.audio_base64 is None:
            raise _broken_rule(
                "Missing required parameter: 'audio' (URL to audio file)"
            )
        if self.audio is not None and not self.audio.strip():
            raise _broken_rule(_INVALID_AUDIO)
        if self.language is not None and not catalog.language_code(self.language):
            raise _broken_rule(f"Invalid language: {_rule('language')}")
        if _SPECIAL_TOKEN.search(self.initial_prompt or ""):
            raise _broken_rule(f"Invalid initial_prompt: {_rule('initial_prompt')}")
        increment = self.temperature_increment_on_fallback
        if increment and increment * _MAX_TEMPERATURES < 1:
            raise _broken_rule(
                "Invalid temperature_increment_on_fallback: must be 0 or at least 0.01"
            )
        if self.patience is not None:
            if self.beam_size is None:
                raise _broken_rule("Invalid patience: needs a beam_size")
            # Beam search stops at this many finished beams; Whisper asserts at least 1.
            finished_beams = self.beam_size * self.patience
            if math.isinf(finished_beams):
                raise _broken_rule("Invalid patience: too large for this beam_size")
            if round(finished_beams) < 1:
                raise _broken_rule("Invalid patience: too small for this beam_size")
        if self.hallucination_silence_threshold and not self.word_timestamps:
            raise _broken_rule(
                "Invalid hallucination_silence_threshold: needs word_timestamps"
            )
        return self

    @property
    def language_code(self) -> str | None:
        return catalog.language_code(self.language) if self.language else None

    def audio_bytes(self) -> bytes:
        """The file inside `audio_base64`.

        Raises InvalidRequestError if it is no base64 or larger than 32 MiB.
        """
        text = self.audio_base64 or ""
        if len(text) <= MAX_BASE64_AUDIO_BYTES * 3 // 2:
            try:
                # Line breaks are usual in base64; other strangers are errors.
                data = base64.b64decode("".join(text.split()), validate=True)
            except (binascii.Error, ValueError):
                data = b""
            if 0 < len(data) <= MAX_BASE64_AUDIO_BYTES:
                return data
        raise InvalidRequestError(f"Invalid audio_base64: {_rule('audio_base64')}")

    def without_audio(self) -> Self:
        """What the model needs of the request: neither megabytes of base64 nor a signed URL."""
        return self.model_copy(update={"audio": None, "audio_base64": None})

    def whisper_options(self) -> dict[str, Any]:
        """The keyword arguments of `whisper.transcribe` that this request asks for.

        The ladder of temperatures is built as in Whisper's command line (`whisper.transcribe.cli`).
        """
        step = self.temperature_increment_on_fallback
        temperature = (
            tuple(np.arange(self.temperature, 1.0 + 1e-6, step).tolist())
            if step
            else self.temperature
        )
        options = self.model_dump(
            exclude={
                "audio",
                "audio_base64",
                "model",
                "temperature_increment_on_fallback",
            }
        )
        return options | {
            "temperature": temperature,
            "language": self.language_code,
            # As text, because Whisper extends a list it is given in place.
            "suppress_tokens": ",".join(map(str, self.suppress_tokens)),
        }


_INVALID_AUDIO = "Invalid 'audio' parameter: must be a non-empty string URL"


def _rule(field: str) -> str:
    return TranscriptionRequest.model_fields[field].description or ""


def unwrapped(payload: Any) -> Any:
    """What is inside `{"input": ...}`, or the payload itself."""
    wrapped = isinstance(payload, dict) and set(payload) == {"input"}
    return payload["input"] if wrapped else payload


def parse_request(payload: Any) -> TranscriptionRequest:
    """Validate a request as it came through a door, bare or inside `{"input": ...}`.

    Raises InvalidRequestError with a text that names the field and its rule.
    """
    payload = unwrapped(payload)
    if not isinstance(payload, dict):
        raise InvalidRequestError("The request must be a JSON object")
    fields = TranscriptionRequest.model_fields
    for key in payload:
        if key not in fields:
            raise InvalidRequestError(
                f"Unknown parameter: '{_short(str(key))}'."
                f" Valid parameters: {', '.join(fields)}"
            )
    try:
        return TranscriptionRequest.model_validate(payload)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
    if details["type"] == "contract":
        raise InvalidRequestError(details["msg"])
    field = details["loc"][0]
    if field == "audio":
        raise InvalidRequestError(_INVALID_AUDIO)
    raise InvalidRequestError(f"Invalid {field}: {_rule(str(field))}")


def unknown_model(name: str, valid_names: list[str]) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid model: '{_short(name)}'. Valid models: {', '.join(valid_names)}"
    )


def _short(text: str) -> str:
    """What a caller wrote, fit to be quoted in an answer."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_ECHO else text[: _MAX_ECHO - 3] + "..."


def check_fits_model(
    request: TranscriptionRequest,
    *,
    model: str,
    multilingual: bool,
    num_languages: int,
    n_vocab: int,
) -> None:
    """Refuse what this model's vocabulary cannot do.

    The router checks it for models whose shape is known beforehand, the replica for weights of the
    user's own. Raises InvalidRequestError.
    """
    code = request.language_code
    if not multilingual:
        if code not in (None, "en"):
            raise InvalidRequestError(
                f"Invalid language: model '{model}' knows English only"
            )
        if request.task == "translate":
            raise InvalidRequestError(
                f"Invalid task: model '{model}' knows English only and cannot translate"
            )
    elif code is not None and code not in list(catalog.LANGUAGES)[:num_languages]:
        raise InvalidRequestError(
            f"Invalid language: model '{model}' does not know '{code}'"
        )
    if any(token >= n_vocab for token in request.suppress_tokens):
        raise InvalidRequestError(
            f"Invalid suppress_tokens: model '{model}' has token ids up to {n_vocab - 1}"
        )


def _nan_to_none(value: Any) -> Any:
    # NaN and infinities are no JSON.
    return None if value is None or not math.isfinite(value) else float(value)


def _strip(value: str) -> str:
    return value.strip()


Number = Annotated[float | None, BeforeValidator(_nan_to_none)]
Text = Annotated[str, BeforeValidator(_strip)]


class Segment(BaseModel):
    """One segment as `whisper.transcribe` gives it; times in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: Text
    tokens: list[int]
    temperature: float
    avg_logprob: Number
    compression_ratio: Number
    no_speech_prob: Number


class Word(BaseModel):
    """One word and its time in seconds."""

    word: Text
    start: float
    end: float
    probability: Number


class Timings(BaseModel):
    """Where the time went, in seconds; but `batch`: how many windows decoded together, on average."""

    download: float = 0.0
    decode: float = 0.0
    model_start: float = 0.0
    queue: float = 0.0
    transcribe: float = 0.0
    batch: float = 0.0


class TranscriptionResponse(BaseModel):
    """The answer. `word_timestamps` is present exactly when it was asked for."""

    segments: list[Segment]
    word_timestamps: list[Word] | None = None
    detected_language: str
    transcription: Text
    device: Literal["cuda", "cpu"]
    model: str
    duration: float
    timings: Timings
    request_id: str


class ErrorResponse(BaseModel):
    """What HTTP answers when it fails; the status says whose fault it is."""

    error: str
    type: str


def segments_of(result: dict[str, Any]) -> list[Segment]:
    """The segments of a result of `whisper.transcribe`, as plain numbers and text."""
    return [Segment.model_validate(segment) for segment in result["segments"]]


def words_of(result: dict[str, Any]) -> list[Word]:
    """All words of a result of `whisper.transcribe` in order."""
    return [
        Word.model_validate(word)
        for segment in result["segments"]
        for word in segment.get("words", [])
    ]
