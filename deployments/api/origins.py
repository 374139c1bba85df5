"""Which POST requests came from a web page that may not use the service.

A browser sends some POST requests across sites without asking, also to services on the user's own
machine. A page could make a service fetch URLs in that way, although it could not read the answers.

-   `Sec-Fetch-Site` tells how a page's origin relates to the service
    (https://www.w3.org/TR/fetch-metadata/). Browsers leave it out on plain HTTP, except to
    localhost.
-   `Origin` comes with every POST of a browser.
-   The page of a name that was made to point at this service (DNS rebinding) is of the same origin
    to the browser. Such a name is unknown here.

Clients that are no browsers send neither header, and pass.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

ANY = "*"
_PORTS = {"http": 80, "https": 443}


def may_post(headers: Headers, allowed: Collection[str], *, any_host: bool) -> bool:
    """True unless a browser sent this POST for a page that may not use the service.

    allowed: the origins of other pages that may, as browsers write them, or `*`
    any_host: whether the service may be called by any name, as where keys protect it
    """
    # A header that is repeated fits nothing.
    site = ",".join(headers.getlist("sec-fetch-site")).strip().lower()
    origin = ",".join(headers.getlist("origin")).strip().lower()
    if not site and not origin:
        return True
    if ANY in allowed or origin in allowed:
        return True
    host = headers.get("host", "")
    own = site in ("same-origin", "none") if site else _is_of(origin, host)
    return own and (any_host or _is_known(host, allowed))


def _is_of(origin: str, host: str) -> bool:
    """Whether the service at this `Host` is the origin itself.

    A Host without a port has the port of the origin's scheme: what ends TLS in front of the service
    may keep the Host.
    """
    scheme = origin.partition("://")[0]
    target = _authority(f"{scheme}://{host}")
    return target is not None and _authority(origin) == target


def _is_known(host: str, allowed: Collection[str]) -> bool:
    target = _authority(f"http://{host}")
    if target is None:
        return False
    name = target[0].removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        known = (_authority(origin) for origin in allowed)
        return any(name == authority[0] for authority in known if authority)


def _authority(origin: str) -> tuple[str, int | None] | None:
    """Host and port; None for `null` and for what is no origin."""
    try:
        parts = urlsplit(origin)
        if not parts.hostname or parts.path or parts.username is not None:
            return None
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
