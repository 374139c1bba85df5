"""Plain values as clients write them: forms, templates and environments have nothing but text.

Each reader gives the plain value where the text can mean nothing else, and leaves anything else as
it is for the field's own rule to refuse.
"""

import json
import re
from typing import Any

# Longer text is no number that a field takes, and Python reads digits in quadratic time.
_LONGEST_NUMBER = 100
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
# What some clients write for null.
_NULLS = ("null", "none")
# The most characters of a list inside text. A longer one would break the limits on its length too.
_LONGEST_LIST = 1_000_000


def number(value: Any) -> Any:
    """A finite number that is written as text, such as "0.2" or "1e+01"."""
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        text = value.strip()
        return float(text) if _NUMBER.fullmatch(text) else value
    return value


def whole_number(value: Any) -> Any:
    """An integer that is written as text or, as JSON has one kind of number, as 5.0."""
    value = number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def boolean(value: Any) -> Any:
    """true or false that is written as text or as 1 or 0."""
    if isinstance(value, str):
        return _BOOLEANS.get(value.strip().lower(), value)
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return value


def is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def is_null(value: Any) -> bool:
    """Whether the value is the word for null."""
    return isinstance(value, str) and value.strip().lower() in _NULLS


def items(value: Any) -> Any:
    """A list that is written as text, "1,2,3" as on Whisper's command line or "[1, 2, 3]" as JSON.

    Blank text is the empty list, and a number by itself a list of one.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str) or len(value) > _LONGEST_LIST:
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return value
    return text.split(",") if text else []


def mapping(value: Any) -> Any:
    """An object that is written as JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
