"""A result within the size that the job API takes."""

from typing import Any

from deployments.contract.answer import Answer
from deployments.contract.errors import InvalidRequestError
from deployments.runpod.job import to_json

# What a result can spare, and the warning that says so. The words come first, because
# `word_timestamps` holds the same ones.
_SPARED = {
    field: f"The segments' {field} are left out:"
    " with them the result is larger than the job API takes"
    for field in ("words", "tokens")
}


def fit_to_limit(answer: Answer, limit: int) -> dict[str, Any]:
    """The answer as plain JSON of at most `limit` bytes.

    If the answer is larger, its segments lose their words, which `word_timestamps` repeats, and
    then their tokens.

    Raises InvalidRequestError if it is still too large then, and ValueError if it is no JSON.
    """
    output = answer.model_dump()
    size = _size(output)
    for field, warning in _SPARED.items():
        if size <= limit:
            return output
        spared = [segment.pop(field, None) for segment in output["segments"]]
        if any(value is not None for value in spared):
            output["warnings"] = [*output["warnings"], warning]
            size = _size(output)
    if size <= limit:
        return output
    words = " without word_timestamps, or" if "word_timestamps" in output else ""
    raise _too_large(size, limit, words)


def fit_openai_to_limit(output: Any, limit: int) -> Any:
    """What OpenAI's API answers, of at most `limit` bytes, without its segments' tokens if need be.

    Clients of OpenAI's expect the field, so the tokens become an empty list.

    Raises InvalidRequestError if it is still too large then.
    """
    size = _size(output)
    segments = output.get("segments") if isinstance(output, dict) else None
    if size > limit and segments:
        output = {
            **output,
            "segments": [{**segment, "tokens": []} for segment in segments],
            "warnings": [*output.get("warnings", []), _SPARED["tokens"]],
        }
        size = _size(output)
    if size > limit:
        words = isinstance(output, dict) and "words" in output
        raise _too_large(size, limit, " without words, or" if words else "")
    return output


def _too_large(size: int, limit: int, words: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The result takes {size / 1e6:.1f} MB, more than the {limit / 1e6:g} MB that can be sent:"
        f" transcribe the recording{words} in parts (clip_timestamps)"
    )


def _size(output: Any) -> int:
    return len(to_json({"output": output}))
