"""What the OpenAPI description says of OpenAI's routes, whose bodies FastAPI does not read."""

from typing import Any

from deployments.api.described_errors import KEY_REFUSALS, described
from deployments.api.events import EVENT_SCHEMA
from deployments.api.openai.answer_options import FORMATS
from deployments.contract.request import TranscriptionRequest
from deployments.http_errors import ErrorBody

EVERY_ROUTE = described(
    ErrorBody,
    {
        **KEY_REFUSALS,
        500: "the service failed on this request",
        503: "the model or the service cannot start, or too many requests wait",
    },
)
UNKNOWN_MODEL = described(ErrorBody, {404: "no model has the name"})
MODEL_NAME = [
    {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
]
TRANSCRIPTION_ANSWERS = UNKNOWN_MODEL | {
    **described(
        ErrorBody,
        {
            400: "the request, its URL or its audio is at fault",
            413: "the body is too large",
            415: "the body is of a kind that is not read",
            429: "the API key has too many requests waiting or in work",
            502: "the host of the audio is at fault",
            504: "the request took too long",
        },
    ),
    200: {
        "description": "the transcription in its format, or a stream of events",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}},
                    "required": ["text"],
                }
            },
            "text/plain": {"schema": {"type": "string"}},
            "text/vtt": {"schema": {"type": "string"}},
            "text/event-stream": {"itemSchema": EVENT_SCHEMA},
        },
    },
}
_OWN_FIELDS: dict[str, Any] = {
    "url": {"type": "string", "description": "of the recording, in place of file"},
    "model": {"type": "string", "description": "unset: the default model"},
    "language": {"type": "string"},
    "prompt": {"type": "string"},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "timestamp_granularities[]": {
        "type": "array",
        "items": {"type": "string", "enum": ["word", "segment"]},
        "description": "with verbose_json",
    },
    "stream": {"type": "boolean", "default": False},
    "max_line_width": {"type": "integer", "minimum": 1, "description": "srt and vtt"},
    "max_line_count": {"type": "integer", "minimum": 1, "description": "srt and vtt"},
    "max_words_per_line": {
        "type": "integer",
        "minimum": 1,
        "description": "srt and vtt",
    },
    "highlight_words": {"type": "boolean", "description": "srt and vtt"},
}
_NOT_OFFERED = ("audio", "audio_base64", "initial_prompt", "task")


def request_body() -> dict[str, Any]:
    """The body of a transcription: a form with the file, or JSON with its URL."""
    native = TranscriptionRequest.model_json_schema()["properties"]
    options = {name: native[name] for name in native if name not in _NOT_OFFERED}
    fields = _OWN_FIELDS | {n: s for n, s in options.items() if n not in _OWN_FIELDS}
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    in_json = {name.removesuffix("[]"): rule for name, rule in fields.items()}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": file, **fields}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "description": "as base64"},
                        **in_json,
                    },
                }
            },
        },
    }
