"""A result within the size that the job API takes."""

from collections.abc import Callable, Mapping
from typing import Any

from deployments.contract.answer import Answer
from deployments.contract.errors import InvalidRequestError
from deployments.runpod.job import to_json

# Takes a field's value out of a segment.
_Spare = Callable[[dict[str, Any], str], None]


def fit_to_limit(answer: Answer, limit: int) -> dict[str, Any]:
    """The answer as plain JSON of at most `limit` bytes.

    If the answer is larger, its segments lose their words, which `word_timestamps` repeats, and
    then their tokens.

    Raises InvalidRequestError if it is still too large then, and ValueError if it is no JSON.
    """
    output = answer.model_dump()
    _fit(output, limit, {"words": _remove, "tokens": _remove})
    return output


def fit_openai_to_limit(output: Any, limit: int) -> Any:
    """What OpenAI's API answers, of at most `limit` bytes, without its segments' tokens if need be.

    Clients of OpenAI's expect the field, so the tokens become an empty list.

    output: an object, which is changed, or a text

    Raises InvalidRequestError if it is still too large then.
    """
    _fit(output, limit, {"tokens": _empty})
    return output


def _fit(output: Any, limit: int, spares: Mapping[str, _Spare]) -> None:
    """Spare fields of the segments, in order, until the output fits; a warning names each."""
    fields: dict[str, Any] = output if isinstance(output, dict) else {}
    segments = fields.get("segments", [])
    size = _size(output)
    for name, spare in spares.items():
        if size <= limit:
            return
        if any(segment.get(name) for segment in segments):
            warning = (
                f"The segments' {name} are left out:"
                " with them the result is larger than the job API takes"
            )
            fields["warnings"] = [*fields.get("warnings", []), warning]
        for segment in segments:
            spare(segment, name)
        size = _size(output)
    if size <= limit:
        return
    asked = [name for name in ("word_timestamps", "words") if name in fields]
    words = f" without {asked[0]}, or" if asked else ""
    how = "clip_timestamps"
    if "chunks" in fields:
        how += ", not together with chunking_strategy"
    raise InvalidRequestError(
        f"The result takes {size / 1e6:.1f} MB, more than the {limit / 1e6:g} MB that can be sent:"
        f" transcribe the recording{words} in parts ({how})"
    )


def _remove(segment: dict[str, Any], name: str) -> None:
    segment.pop(name, None)


def _empty(segment: dict[str, Any], name: str) -> None:
    segment[name] = []


def _size(output: Any) -> int:
    return len(to_json({"output": output}))
