"""The fields of a request under their plain names, however a client nests them.

OpenAI's SDKs write lists and objects into a form as `name[]`, `name[0]` and `name[key]`, and their
own JavaScript example puts further fields into `extra_body[name]`.
"""

import re
from collections.abc import Mapping
from typing import Any

from deployments.contract import values
from deployments.contract.errors import InvalidRequestError

_NESTED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)")
_KEY = re.compile(r"\[([^\[\]]*)\]")
_EXTRA = "extra_body"


def plain_fields(fields: Any) -> dict[str, Any]:
    """Fields by their plain names: of a list all items, of an object a dict. Null stays null.

    Raises InvalidRequestError where the fields are no object.
    """
    if not isinstance(fields, Mapping):
        raise InvalidRequestError("The request must be a JSON object")
    extra = fields.get(_EXTRA)
    inner = extra if isinstance(extra, Mapping) else {}
    plain: dict[str, Any] = {}
    nulls: dict[str, None] = {}
    for name, value in [*fields.items(), *inner.items()]:
        base, keys = _parts(str(name))
        if value is None:
            nulls[base] = None
        elif value is not inner:
            _put(plain, base, keys, value)
    return nulls | plain


def one(fields: dict[str, Any], name: str) -> Any:
    """Take a field that has one value; None where it is absent or blank.

    Raises InvalidRequestError where the field is given more than once.
    """
    value = fields.pop(name, None)
    if isinstance(value, list):
        if len(value) != 1:
            raise InvalidRequestError(f"Invalid {name}: must be given once")
        value = value[0]
    return None if values.is_blank(value) else value


def flag(fields: dict[str, Any], name: str) -> bool:
    """Take a field that is true or false; false where it is absent. Raises InvalidRequestError."""
    value = values.boolean(one(fields, name))
    if value is None or values.is_null(value):
        return False
    if not isinstance(value, bool):
        raise InvalidRequestError(f"Invalid {name}: must be true or false")
    return value


def many(fields: dict[str, Any], name: str) -> list[Any]:
    """Take a field that is a list, which may be written as text with commas or as JSON."""
    value = fields.pop(name, [])
    found: list[Any] = []
    for item in value if isinstance(value, list) else [value]:
        listed = values.items(item)
        found += listed if isinstance(listed, list) else [listed]
    plain = (item.strip() if isinstance(item, str) else item for item in found)
    return [item for item in plain if item not in (None, "")]


def _parts(name: str) -> tuple[str, list[str]]:
    """`("a", ["b", ""])` of `a[b][]`; of `extra_body[a]` what stands inside."""
    match = _NESTED.fullmatch(name)
    if match is None:
        return name, []
    base, keys = match[1], _KEY.findall(match[2])
    if base == _EXTRA and keys[0]:
        base, keys = keys[0], keys[1:]
    return base, keys


def _put(plain: dict[str, Any], base: str, keys: list[str], value: Any) -> None:
    names = [key for key in keys if key and not key.isdecimal()]
    if names:
        inner = plain.setdefault(base, {})
        if isinstance(inner, dict):
            inner[names[0]] = value
    elif keys or base in plain:
        before = plain.get(base, [])
        before = before if isinstance(before, list) else [before]
        plain[base] = before + (value if isinstance(value, list) else [value])
    else:
        plain[base] = value
