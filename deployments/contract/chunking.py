"""`chunking_strategy`: how a recording may be cut into chunks that are decoded side by side."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticUseDefault

from deployments.contract import values

_AUTO = "auto"
RULE = (
    'must be null, "auto" or {"type": "server_vad"}, which may have threshold (0 to 1),'
    " prefix_padding_ms (0 to 10,000) and silence_duration_ms (0 to 60,000)"
)


def _absent(value: Any) -> Any:
    if value is None or values.is_blank(value) or values.is_null(value):
        raise PydanticUseDefault
    return value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


_Absent = BeforeValidator(_absent)
_Number, _WholeNumber = map(BeforeValidator, (values.number, values.whole_number))


class ServerVad(BaseModel):
    """The options of OpenAI's API, with its defaults. Speech is found by Silero VAD.

    threshold: probability from which a sound counts as speech
    prefix_padding_ms: audio that is kept before speech, and also after it
    silence_duration_ms: silence that ends speech
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True
    )

    type: Annotated[Literal["server_vad"], BeforeValidator(_lower)] = "server_vad"
    threshold: Annotated[Annotated[float, Field(ge=0, le=1)], _Number, _Absent] = 0.5
    prefix_padding_ms: Annotated[
        Annotated[int, Field(ge=0, le=10_000)], _WholeNumber, _Absent
    ] = 300
    silence_duration_ms: Annotated[
        Annotated[int, Field(ge=0, le=60_000)], _WholeNumber, _Absent
    ] = 200


def read(value: Any) -> Any:
    """`"auto"` is voice activity detection with all defaults; an object may be written as JSON."""
    if values.is_blank(value) or values.is_null(value):
        return None
    if isinstance(value, str) and _lower(value) == _AUTO:
        return ServerVad()
    return values.mapping(value)


# Without references, because it stands in the descriptions of several routes.
_SCHEMA = {
    "anyOf": [
        {"const": _AUTO, "type": "string"},
        ServerVad.model_json_schema(),
        {"type": "null"},
    ]
}
ChunkingStrategy = Annotated[
    ServerVad | None, BeforeValidator(read), WithJsonSchema(_SCHEMA)
]
