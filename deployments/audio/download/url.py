"""A URL as HTTP sends it: path and query byte for byte, the host in a form that all read alike.

Signatures are often made over the raw path and query, so a URL that is normalised, as requests and
urllib3 do it, is another URL to such a host. Only what a request line cannot carry is
percent-encoded: blanks, and bytes beyond ASCII.

Programs disagree where the host of an odd URL begins and ends, and which host it names. What they
could disagree about is refused here, so that the host that is judged is the host that is asked.
"""

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote

import idna

from deployments.contract.errors import AudioUrlError

DEFAULT_PORTS = {"http": 80, "https": 443}

_MAX_LENGTH = 8192
_ABSOLUTE = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)
_AFTER_SCHEME = re.compile(r"//([^/?#]*)([^#]*)(?:#.*)?", re.DOTALL)
# Control characters, the separators of lines and paragraphs, the byte order mark, and halves of
# characters, but for those that stand for the undecodable bytes of a redirect.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udc7f\udd00-\udfff]"
)
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]*))?")
_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_MAX_NAME_LENGTH = 253
# What the C library and browsers may read as an IPv4 address (https://url.spec.whatwg.org, "ends
# in a number"): also numbers in octal or hexadecimal, or fewer than four of them.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
_BLANK_OR_BACKSLASH = "it holds a blank or a backslash that must be percent-encoded"
_NOT_IN_REQUEST_LINE = re.compile(rb"[^\x21-\x7e]")


@dataclass(frozen=True, repr=False)
class HttpUrl:
    """An absolute URL of http or https.

    scheme: `http` or `https`
    host: a name in ASCII and lower case, or an address without brackets
    target: path and query as they are sent; begins with a slash
    credentials: user and password that stood before the host
    """

    scheme: str
    host: str
    port: int
    target: str
    credentials: tuple[str, str] | None

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as `https://example.com:8443`; a default port is left out."""
        is_default = self.port == DEFAULT_PORTS[self.scheme]
        host = self._bracketed_host if is_default else self.host_and_port
        return f"{self.scheme}://{host}"

    @property
    def host_and_port(self) -> str:
        """As `allow_hosts` names it."""
        return f"{self._bracketed_host}:{self.port}"

    @property
    def _bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises AudioUrlError with a text that says what is wrong."""
        _check_characters(url)
        absolute = _ABSOLUTE.fullmatch(url)
        if absolute is None:
            raise AudioUrlError(
                "this is no URL: give one that begins with http:// or https://,"
                " or send the file itself as 'audio_base64'"
            )
        scheme, rest = absolute[1].lower(), absolute[2]
        if scheme not in DEFAULT_PORTS:
            raise AudioUrlError(
                "only http and https can be fetched, also after a redirect"
            )
        parts = _AFTER_SCHEME.fullmatch(rest)
        if parts is None or not parts[1]:
            raise _malformed("no host")
        authority, target = parts[1], parts[2]
        userinfo, _, host_and_port = authority.rpartition("@")
        # Browsers take a backslash for a slash, and other programs do not.
        if " " in authority or "\\" in authority + target.partition("?")[0]:
            raise _malformed(_BLANK_OR_BACKSLASH)
        host, port = _host_and_port(host_and_port, DEFAULT_PORTS[scheme])
        user, _, password = userinfo.partition(":")
        return cls(
            scheme=scheme,
            host=host,
            port=port,
            target=_sendable(target if target.startswith("/") else "/" + target),
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
            return self.parse(f"{self.scheme}:{where}")
        _check_characters(where)
        if "\\" in where.partition("?")[0]:
            raise _malformed(_BLANK_OR_BACKSLASH)
        target = _joined(self.target.partition("?")[0], where.partition("#")[0])
        return replace(self, target=_sendable(target))


def _malformed(reason: str) -> AudioUrlError:
    return AudioUrlError(f"malformed URL: {reason}")


def _check_characters(text: str) -> None:
    if len(text) > _MAX_LENGTH:
        raise _malformed(f"longer than {_MAX_LENGTH} characters")
    if _INVISIBLE.search(text):
        raise _malformed("it holds a control character that must be percent-encoded")


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise _malformed("what follows the host is no port")
    port = int(found[2][:6]) if found[2] else default_port
    if not 0 < port < 65536:
        raise _malformed("the port must be a number from 1 to 65535")
    return _host(found[1]), port


def _host(text: str) -> str:
    """The host in ASCII and lower case: urllib3 and requests would make nothing else of it."""
    if text.startswith("["):
        return _ipv6(text[1:-1])
    name = text.lower()
    if not name.isascii():
        name = _in_ascii(name)
    if _ENDS_IN_NUMBER.fullmatch(name):
        return _ipv4(name)
    if not _NAME.fullmatch(name) or len(name.rstrip(".")) > _MAX_NAME_LENGTH:
        raise _malformed("the host is no valid name")
    return name


def _in_ascii(name: str) -> str:
    """A name in Punycode, as urllib3 does it; nothing where it is not valid.

    The strict rules of IDNA 2008 know no letters that stand for other ones.
    """
    with suppress(UnicodeError):
        return idna.encode(name, strict=True, std3_rules=True).decode("ascii")
    return ""


def _ipv4(text: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.IPv4Address(text.removesuffix(".")))
    raise _malformed(
        "write the host's address as four decimal numbers without leading zeros"
    )


def _ipv6(text: str) -> str:
    # A zone would name an interface of the machine that connects.
    with suppress(ValueError):
        return str(ipaddress.IPv6Address("" if "%" in text else text))
    raise _malformed("the host is no valid IPv6 address")


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
