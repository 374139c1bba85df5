"""A URL as HTTP sends it: every byte as it was given.

Signatures are often made over the raw path and query, so a URL that is normalised, as requests and
urllib3 do it, is another URL to such a host. Only what a request line cannot carry is
percent-encoded: blanks, control characters, and bytes beyond ASCII.
"""

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote

from deployments.contract.errors import AudioUrlError

_ABSOLUTE = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)
_AFTER_SCHEME = re.compile(r"//([^/?#]*)([^#]*)(?:#.*)?", re.DOTALL)
_NOT_IN_AUTHORITY = re.compile(r"[\x00-\x20\x7f\\]")
_NOT_IN_REQUEST_LINE = re.compile(rb"[^\x21-\x7e]")


@dataclass(frozen=True, repr=False)
class HttpUrl:
    """An absolute URL of http or https.

    origin: scheme, host and port as they were given, such as `https://example.com:8443`
    target: path and query as they are sent; begins with a slash
    credentials: user and password that stood before the host
    """

    origin: str
    target: str
    credentials: tuple[str, str] | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises AudioUrlError (another scheme) and ValueError (malformed)."""
        absolute = _ABSOLUTE.fullmatch(url)
        if absolute is None:
            raise AudioUrlError(
                "this is no URL: give one that begins with http:// or https://,"
                " or send the file itself as 'audio_base64'"
            )
        scheme, rest = absolute.groups()
        if scheme.lower() not in ("http", "https"):
            raise AudioUrlError(
                "only http and https can be fetched, also after a redirect"
            )
        parts = _AFTER_SCHEME.fullmatch(rest)
        # Programs disagree where the host ends if a blank or a backslash stands before the path.
        if parts is None or not parts[1] or _NOT_IN_AUTHORITY.search(parts[1]):
            raise ValueError("no host")
        userinfo, _, host = parts[1].rpartition("@")
        user, _, password = userinfo.partition(":")
        target = parts[2] if parts[2].startswith("/") else "/" + parts[2]
        return cls(
            origin=f"{scheme.lower()}://{host}",
            target=_sendable(target),
            credentials=(unquote(user), unquote(password)) if userinfo else None,
        )

    def follow(self, location: str) -> Self:
        """The URL that a redirect names.

        location: the header's bytes, decoded as latin-1

        Raises as `parse` does.
        """
        # Undecodable bytes are kept, for the path; in the name of a host they are an error.
        where = location.encode("latin-1").decode("utf-8", "surrogateescape")
        if _ABSOLUTE.fullmatch(where):
            return self.parse(where)
        if where.startswith("//"):
            return self.parse(f"{self.origin.partition(':')[0]}:{where}")
        target = _joined(self.target.partition("?")[0], where.partition("#")[0])
        return replace(self, target=_sendable(target))


def _sendable(target: str) -> str:
    return _NOT_IN_REQUEST_LINE.sub(
        lambda byte: b"%%%02X" % ord(byte[0]), target.encode("utf-8", "surrogateescape")
    ).decode("ascii")


def _joined(path: str, reference: str) -> str:
    """`reference` as seen from `path`; no more of either is rewritten than that takes."""
    if reference.startswith("/"):
        return reference
    if not reference or reference.startswith("?"):
        return path + reference
    folder = path.rpartition("/")[0]
    while step := re.match(r"\.\.?(/|$|(?=\?))", reference):
        if step[0].startswith(".."):
            folder = folder.rpartition("/")[0]
        reference = reference[step.end() :]
    return f"{folder}/{reference}"
