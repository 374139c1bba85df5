"""A job of RunPod's, and JSON as it is sent about one."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

# As RunPod hands it out: `id` and `input`, and more that no worker needs.
Job = dict[str, Any]
# The result is the output, or `{"error": text}`.
Handler = Callable[[Job], Coroutine[Any, Any, Any]]

INTERNAL_ERROR = "Internal error; the worker's log names it"


def is_error(result: Any) -> bool:
    return isinstance(result, dict) and "error" in result


def to_json(value: Any) -> bytes:
    """In UTF-8. Raises ValueError for NaN, which is no JSON, though the SDK would send it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
