"""A result within the size that the job API takes."""

from typing import Any

from deployments.contract.answer import Answer
from deployments.contract.errors import InvalidRequestError
from deployments.runpod.job import to_json

_WITHOUT_TOKENS = (
    "The segments' tokens are left out:"
    " with them the result is larger than the job API takes"
)


def fit_to_limit(answer: Answer, limit: int) -> dict[str, Any]:
    """The answer as plain JSON; without its tokens where it would take more than `limit` bytes.

    Raises InvalidRequestError if that is not enough, and ValueError if the answer is no JSON.
    """
    output = answer.model_dump()
    if _size(output) <= limit:
        return output
    for segment in output["segments"]:
        del segment["tokens"]
    output["warnings"] = [*output["warnings"], _WITHOUT_TOKENS]
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
