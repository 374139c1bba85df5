"""The request of every door: the audio, the model, and Whisper's options."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from deployments.contract import audio_headers, inline_audio, languages, values
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import (
    Null,
    TranscriptionOptions,
    UnicodeText,
    WholeNumber,
    blank_to_null,
)
from deployments.contract.values import boolean

# The most characters of a caller's own text that an error quotes.
_MAX_ECHO = 60
_INVALID_AUDIO = "Invalid 'audio' parameter: must be a non-empty string URL"
# A secret that was read from a file often ends with a line break.
_HeaderValue = Annotated[str, AfterValidator(str.strip)]
_SOURCES = ("audio", "audio_base64", "audio_headers")
_OWN_FIELDS = (*_SOURCES, "audio_track", "audio_channel", "model")


# A language tag (RFC 5646): files also have tracks in languages that Whisper does not know.
_TAG = re.compile(r"[A-Za-z]{2,20}([-_][A-Za-z0-9]{1,8}){0,4}")


def _language(value: str) -> str:
    value = value.strip()
    if not _TAG.fullmatch(value):
        # Raises a ValueError for what is no name of a language either.
        languages.find(value)
    return value


# More than any file has; FFmpeg counts streams and channels in 32 bits.
_Number = Annotated[WholeNumber, Field(ge=0, lt=1 << 31)]
_Language = Annotated[UnicodeText, AfterValidator(_language)]


def _own_fields_first(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    own = {name: properties.pop(name) for name in _OWN_FIELDS if name in properties}
    schema["properties"] = own | properties


class UploadRequest(TranscriptionOptions):
    """The fields of a request without its audio, which is uploaded separately."""

    model_config = ConfigDict(json_schema_extra=_own_fields_first)

    audio_track: Annotated[_Number | _Language | None, Null] = Field(
        None,
        description="must be the number of an audio track, from 0, or a language such as"
        " 'pt'; null: the track that FFmpeg takes",
    )
    audio_channel: Annotated[_Number | None, Null] = Field(
        None,
        description="must be the number of a channel, from 0; null: the mix of all",
    )
    model: Annotated[UnicodeText | None, BeforeValidator(blank_to_null)] = Field(
        None, description="must be the name of a served model; null: the default one"
    )

    @property
    def options(self) -> TranscriptionOptions:
        """The options alone: without megabytes of base64 and without a signed URL."""
        names = TranscriptionOptions.model_fields
        # The values were validated as those of the request.
        values = {name: getattr(self, name) for name in names}
        return TranscriptionOptions.model_construct(**values)


class TranscriptionRequest(UploadRequest):
    """The fields of a request that holds its audio, or the URL of its audio."""

    audio: UnicodeText | None = Field(
        None,
        description="URL or data: URI of an audio or video file (this or audio_base64)",
    )
    audio_base64: str | None = Field(
        None,
        description="must be a base64 string or a data: URI of at most 32 MiB decoded",
    )
    audio_headers: Annotated[
        dict[str, _HeaderValue] | None, BeforeValidator(values.mapping)
    ] = Field(
        None,
        repr=False,
        description="must be an object of strings: HTTP headers for the download of 'audio'",
    )

    def _broken_rules(self) -> Iterator[str]:
        if self.audio is not None and self.audio_base64 is not None:
            yield "Give either 'audio' or 'audio_base64', not both"
        if self.audio is None and self.audio_base64 is None:
            yield "Missing required parameter: 'audio' (URL to audio file)"
        if self.audio is not None and not self.audio.strip():
            yield _INVALID_AUDIO
        if self.audio_headers and not self._is_downloaded:
            yield (
                "Invalid audio_headers: only a download has headers,"
                " and this request holds its file"
            )
        if broken := audio_headers.broken_rule(self.audio_headers or {}):
            yield f"Invalid audio_headers: {broken}"
        yield from super()._broken_rules()

    @property
    def _is_downloaded(self) -> bool:
        return self.audio is not None and not inline_audio.is_data_uri(self.audio)

    def inline_audio(self) -> Iterator[bytes] | None:
        """The file inside the request, in pieces; None where `audio` is a URL.

        Raises InvalidRequestError, at any piece, with a text that says what is wrong.
        """
        if self.audio_base64 is not None:
            return _decoded("audio_base64", self.audio_base64)
        if self.audio is not None and inline_audio.is_data_uri(self.audio):
            return _decoded("audio", self.audio)
        return None


def _decoded(field: str, text: str) -> Iterator[bytes]:
    try:
        yield from inline_audio.decoded(text)
    except inline_audio.InlineAudioError as error:
        raise InvalidRequestError(f"Invalid {field}: the text {error}") from None


_Options = TypeVar("_Options", bound=TranscriptionOptions)


def unwrapped(payload: Any) -> Any:
    """What is inside `{"input": ...}`, or the payload itself."""
    wrapped = isinstance(payload, dict) and set(payload) == {"input"}
    return payload["input"] if wrapped else payload


def take_stream(payload: Any) -> bool | None:
    """Take the field `stream` out of a request, where events are wanted in place of an answer.

    None where it is absent. Raises InvalidRequestError.
    """
    stream = None
    for fields in (payload, unwrapped(payload)):
        if isinstance(fields, dict) and "stream" in fields:
            stream = boolean(blank_to_null(fields.pop("stream")))
    if stream is None or isinstance(stream, bool):
        return stream
    raise InvalidRequestError("Invalid stream: must be true or false")


def parse_request(payload: Any) -> TranscriptionRequest:
    """Validate a request as it came through a door, bare or inside `{"input": ...}`.

    Raises InvalidRequestError with a text that names the field and its rule.
    """
    return _parse(TranscriptionRequest, unwrapped(payload))


def parse_upload(payload: Any) -> UploadRequest:
    """Validate the fields that came with an uploaded file; raises as `parse_request` does."""
    fields = unwrapped(payload)
    for name in _SOURCES if isinstance(fields, dict) else ():
        if fields.get(name):
            raise InvalidRequestError(
                f"Invalid {name}: the file came with the request; give one of them"
            )
    return _parse(UploadRequest, fields)


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
