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
    raise InvalidRequestError(
        f"The result takes {size / 1e6:.1f} MB, more than the {limit / 1e6:g} MB that can be sent:"
        f" transcribe the recording{words} in parts (clip_timestamps)"
    )


def _size(output: dict[str, Any]) -> int:
    return len(to_json({"output": output}))
