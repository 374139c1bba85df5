"""A request as it comes through a door: the audio, the model, and the options."""

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from deployments.contract import audio_headers
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import (
    TranscriptionOptions,
    UnicodeText,
    WholeNumber,
)

MAX_BASE64_AUDIO_BYTES = 32 << 20
# The most characters of a caller's own text that an error quotes.
_MAX_ECHO = 60
_INVALID_AUDIO = "Invalid 'audio' parameter: must be a non-empty string URL"
# A secret that was read from a file often ends with a line break.
_HeaderValue = Annotated[str, AfterValidator(str.strip)]
_OWN_FIELDS = (
    "audio",
    "audio_base64",
    "audio_headers",
    "audio_track",
    "audio_channel",
    "model",
)


def _track_of_text(value: Any) -> Any:
    """A number where the text is one; None for no text, as where nothing was chosen in a form."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return int(text) if text.isdecimal() and len(text) < 10 else text or None


# More than any file has; FFmpeg counts streams and channels in 32 bits.
_Number = Annotated[WholeNumber, Field(ge=0, lt=1 << 31)]
_Language = Annotated[
    str, Field(pattern=r"^[A-Za-z]{2,20}([-_][A-Za-z0-9]{1,8}){0,4}$")
]


def _own_fields_first(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    own = {name: properties.pop(name) for name in _OWN_FIELDS}
    schema["properties"] = own | properties


class TranscriptionRequest(TranscriptionOptions):
    """What to transcribe, by which model, and Whisper's options for it."""

    model_config = ConfigDict(json_schema_extra=_own_fields_first)

    audio: UnicodeText | None = Field(
        None, description="URL of an audio or video file (this or audio_base64)"
    )
    audio_base64: str | None = Field(
        None, description="must be a base64 string of at most 32 MiB decoded"
    )
    audio_headers: dict[str, _HeaderValue] | None = Field(
        None,
        repr=False,
        description="must be an object of strings: HTTP headers for the download of 'audio'",
    )
    audio_track: Annotated[
        _Number | _Language | None, BeforeValidator(_track_of_text)
    ] = Field(
        None,
        description="must be the number of an audio track, from 0, or a language code such as"
        " 'pt'; null: the track that FFmpeg takes",
    )
    audio_channel: _Number | None = Field(
        None,
        description="must be the number of a channel, from 0; null: the mix of all",
    )
    model: UnicodeText | None = Field(
        None, description="must be the name of a served model; null: the default one"
    )

    def _broken_rules(self) -> Iterator[str]:
        if self.audio is not None and self.audio_base64 is not None:
            yield "Give either 'audio' or 'audio_base64', not both"
        if self.audio is None and self.audio_base64 is None:
            yield "Missing required parameter: 'audio' (URL to audio file)"
        if self.audio is not None and not self.audio.strip():
            yield _INVALID_AUDIO
        if self.audio_headers and self.audio is None:
            yield "Invalid audio_headers: only a download has headers, and audio_base64 has none"
        if broken := audio_headers.broken_rule(self.audio_headers or {}):
            yield f"Invalid audio_headers: {broken}"
        yield from super()._broken_rules()

    @property
    def options(self) -> TranscriptionOptions:
        """The options alone: without megabytes of base64 and without a signed URL."""
        names = TranscriptionOptions.model_fields
        # The values were validated as those of the request.
        values = {name: getattr(self, name) for name in names}
        return TranscriptionOptions.model_construct(**values)

    def audio_bytes(self) -> bytes:
        """The file inside `audio_base64`.

        Raises InvalidRequestError if the text is no base64 or holds more than 32 MiB.
        """
        text = self.audio_base64 or ""
        if len(text) <= MAX_BASE64_AUDIO_BYTES * 3 // 2:
            try:
                # Line breaks are usual in base64; any other foreign character is an error.
                data = base64.b64decode("".join(text.split()), validate=True)
            except (binascii.Error, ValueError):
                data = b""
            if 0 < len(data) <= MAX_BASE64_AUDIO_BYTES:
                return data
        raise InvalidRequestError(f"Invalid audio_base64: {self.rule('audio_base64')}")


_Options = TypeVar("_Options", bound=TranscriptionOptions)


def unwrapped(payload: Any) -> Any:
    """What is inside `{"input": ...}`, or the payload itself."""
    wrapped = isinstance(payload, dict) and set(payload) == {"input"}
    return payload["input"] if wrapped else payload


def parse_request(payload: Any) -> TranscriptionRequest:
    """Validate a request as it came through a door, bare or inside `{"input": ...}`.

    Raises InvalidRequestError with a text that names the field and its rule.
    """
    return _parse(TranscriptionRequest, unwrapped(payload))


def parse_options(payload: Any) -> TranscriptionOptions:
    """Validate options by themselves, as settings hold them; raises as `parse_request` does."""
    return _parse(TranscriptionOptions, payload)


def short(text: str) -> str:
    """What a caller wrote, fit to be quoted in an error text."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_ECHO else text[: _MAX_ECHO - 3] + "..."


def _parse(kind: type[_Options], payload: Any) -> _Options:
    if not isinstance(payload, dict):
        raise InvalidRequestError("The request must be a JSON object")
    # The order in which fields are listed, and in which broken rules are told.
    fields = [name for name in _OWN_FIELDS if name in kind.model_fields]
    fields += TranscriptionOptions.model_fields
    for key in payload:
        if key not in fields:
            raise InvalidRequestError(
                f"Unknown parameter: '{short(str(key))}'."
                f" Valid parameters: {', '.join(fields)}"
            )
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        details = error.errors(include_url=False)
    if details[0]["type"] == "contract":
        raise InvalidRequestError(details[0]["msg"])
    field = min((str(detail["loc"][0]) for detail in details), key=fields.index)
    if field == "audio":
        raise InvalidRequestError(_INVALID_AUDIO)
    raise InvalidRequestError(f"Invalid {field}: {kind.rule(field)}")
