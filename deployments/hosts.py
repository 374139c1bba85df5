"""How the configuration writes hosts, networks and origins, in the form in which they are compared.

Each function raises ValueError with a text that names the option.
"""

import ipaddress
import re

from deployments.contract.request import short

# Apps have schemes of their own, such as `app://obsidian.md`.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?P<port>:\d{1,5})?"
)
_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*):(?P<port>\d{1,5})"
)
_PROXY = re.compile(
    r"https?://([^\s/?#@]+@)?(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE
)


def origin(text: str) -> str:
    """The origin as a browser writes it in its header: no default port, no slash at the end."""
    plain = text.strip().lower().removesuffix("/")
    if plain == "*":
        return plain
    found = _ORIGIN.fullmatch(plain)
    if found is None:
        raise ValueError(
            f"allowed_origins: '{short(text)}' must be * or like https://example.com:8443,"
            " without a path"
        )
    port = found["port"] or ""
    default = {"http": ":80", "https": ":443"}.get(found["scheme"])
    return f"{found['scheme']}://{found['host']}{'' if port == default else port}"


def host_and_port(text: str) -> str:
    """Such as `minio.local:9000` or `[fd00::5]:80`: lower case, and IPv6 in its short form."""
    plain = text.strip().lower()
    found = _HOST_AND_PORT.fullmatch(plain)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ValueError(
            f"allow_hosts: '{short(text)}' must be a host and its port, such as 10.0.0.5:9000"
        )
    if found["ipv6"] is None:
        return plain
    try:
        return f"[{ipaddress.IPv6Address(found['ipv6'])}]:{found['port']}"
    except ValueError:
        raise ValueError(
            f"allow_hosts: '{short(text)}' has no valid IPv6 address"
        ) from None


def network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError as error:
        # Such as "10.0.0.1/8 has host bits set".
        raise ValueError(f"refuse_networks: {short(str(error))}") from None


def proxy(url: str) -> str:
    plain = url.strip().removesuffix("/")
    if not _PROXY.fullmatch(plain):
        # The text is not quoted, because it may hold a password.
        raise ValueError("egress_proxy must be like http://proxy.example.com:3128")
    return plain
