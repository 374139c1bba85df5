"""HTTP headers that a caller sends along with the download of the audio.

Their values are secrets: no text here quotes them, and no field that holds them shows in a repr.
"""

import re
from collections.abc import Mapping

MAX_HEADERS = 20
MAX_CHARACTERS = 16 << 10

# What describes the connection or the body (RFC 9110, section 7.6.1), and what the download needs
# for itself to go on after a break.
_SET_BY_THE_DOWNLOAD = re.compile(
    r"host|range|if-.+|expect|(accept|content|transfer)-encoding|content-length"
    r"|connection|keep-alive|proxy-.+|te|trailer|upgrade"
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def broken_rule(headers: Mapping[str, str]) -> str | None:
    """What is wrong with the headers, in words for the caller; None if nothing is."""
    n_characters = sum(len(name) + len(value) for name, value in headers.items())
    if len(headers) > MAX_HEADERS or n_characters > MAX_CHARACTERS:
        return f"must be at most {MAX_HEADERS} headers of {MAX_CHARACTERS >> 10} KiB together"
    names = [name.lower() for name in headers]
    if not all(map(_NAME.fullmatch, names)):
        return "the name of a header must be letters, digits and hyphens"
    if not all(map(_VALUE.fullmatch, headers.values())):
        return "the value of a header must be ASCII characters on one line"
    if len(set(names)) < len(names):
        return "a header is named twice"
    for name in names:
        if _SET_BY_THE_DOWNLOAD.fullmatch(name):
            return f"the header '{name}' is for the download itself to set"
    return None
