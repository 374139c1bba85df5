"""Where in a request the recording is, if it did not come as a file of a form."""

from typing import Any

from deployments.api.openai.fields import one
from deployments.contract import inline_audio
from deployments.contract.errors import InvalidRequestError

# OpenAI's own field; Groq's; RunPod's and the contract's; OpenRouter's, which Open WebUI writes.
_SOURCES = ("file", "url", "audio_url", "audio", "audio_base64", "input_audio")


def take_source(fields: dict[str, Any], has_file: bool) -> tuple[str, dict[str, Any]]:
    """Take the recording from the fields: the field's name, and the contract's fields for it.

    has_file: whether the recording came as a file beside the fields, so that no other may be there

    Raises InvalidRequestError.
    """
    given = {name: one(fields, name) for name in _SOURCES}
    found = [name for name, value in given.items() if value is not None]
    if len(found) + has_file > 1:
        names = ", ".join(dict.fromkeys(["file"] * has_file + found))
        raise InvalidRequestError(
            f"Invalid {found[-1]}: the recording is given more than once; give one of {names}"
        )
    if has_file:
        return "file", {}
    if not found:
        raise InvalidRequestError(
            "Missing required parameter: 'file' (the recording, or its URL as 'url')"
        )
    [name] = found
    value = _inner(name, given[name])
    by_address = name in ("url", "audio_url", "audio") or _is_address(name, value)
    source = {"audio" if by_address else "audio_base64": value}
    if "audio_headers" in fields:
        source["audio_headers"] = fields.pop("audio_headers")
    return name, source


def _inner(name: str, value: Any) -> Any:
    """What stands inside the object that some clients make of a recording."""
    if name == "audio_url" and isinstance(value, dict):
        return value.get("url", "")
    if name == "input_audio":
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, str):
            raise InvalidRequestError(
                "Invalid input_audio: must be an object with the file as base64 in 'data'"
            )
        return data
    return value


def _is_address(name: str, value: Any) -> bool:
    """Whether text that may be base64 is a URL or a `data:` URI."""
    if name == "audio_base64" or not isinstance(value, str):
        return False
    start = value[:20].lstrip().lower()
    return start.startswith(("http://", "https://")) or inline_audio.is_data_uri(value)
