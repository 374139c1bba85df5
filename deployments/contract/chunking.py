"""`chunking_strategy`: how a recording may be cut into chunks that are decoded side by side."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticUseDefault

from deployments.contract import values

_AUTO = "auto"
RULE = (
    'must be null, "auto" or {"type": "server_vad"} with threshold (0 to 1),'
    " prefix_padding_ms (0 to 10,000) or silence_duration_ms (0 to 60,000)"
)


def _absent(value: Any) -> Any:
    if value is None or values.is_blank(value) or values.is_null(value):
        raise PydanticUseDefault
    return value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


_Absent = BeforeValidator(_absent)
_Milliseconds = Annotated[int, BeforeValidator(values.whole_number), _Absent]


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
    threshold: Annotated[
        Annotated[float, Field(ge=0, le=1)], BeforeValidator(values.number), _Absent
    ] = 0.5
    prefix_padding_ms: Annotated[_Milliseconds, Field(ge=0, le=10_000)] = 300
    silence_duration_ms: Annotated[_Milliseconds, Field(ge=0, le=60_000)] = 200


def read(value: Any) -> Any:
    """`"auto"` is voice activity detection with all defaults; an object may be written as JSON."""
    if values.is_blank(value) or values.is_null(value):
        return None
    if isinstance(value, str) and _lower(value) == _AUTO:
        return ServerVad()
    return values.mapping(value)


ChunkingStrategy = Annotated[
    ServerVad | None,
    BeforeValidator(read, json_schema_input_type=Literal["auto"] | ServerVad | None),
]
