"""The headers of docs/operations.md, as a browser reads them."""

from collections.abc import Mapping

# By name, what the value has to hold.
NEEDED = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "",
}


def missing(headers: Mapping[str, str]) -> list[str]:
    """What an answer lacks. headers: looked up without regard to case"""
    lacking = [
        name
        for name, part in NEEDED.items()
        if name not in headers or part not in headers[name]
    ]
    if "frame-ancestors 'none'" not in headers.get("content-security-policy", ""):
        lacking.append("frame-ancestors")
    return lacking
