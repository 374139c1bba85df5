"""Which hosts may be fetched from: by default those of the public internet alone.

Whoever can send a request could otherwise make the service fetch from its own machine and network,
or from a cloud's metadata service (server-side request forgery). What a socket will connect to is
judged, at each hop of a redirect, and nothing that is resolved once more afterwards.
"""

import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from deployments.audio.download.addresses import (
    IpAddress,
    OwnAddresses,
    is_public,
    plain,
)
from deployments.audio.download.resolver import Endpoint, Resolver
from deployments.audio.download.url import DEFAULT_PORTS, HttpUrl
from deployments.contract.errors import AudioUrlError

logger = logging.getLogger(__name__)

# One text for a host that does not exist and for a private one, so that a caller learns no names of
# the internal network.
NO_PUBLIC_ADDRESS = "the host has no public address, and allow_hosts does not name it"
# See `tick_s`: longer than most look-ups take.
_TICK_S = 0.25
# More addresses than this are the attempt to keep a download busy with hosts that do not answer.
_MAX_ADDRESSES = 4
# Ports above 1023 that browsers do not fetch from either: https://fetch.spec.whatwg.org, bad port.
_BAD_PORTS = frozenset(
    [1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566]
    + [*range(6665, 6670), 6679, 6697, 10080]
)

# Shared by all downloads of a process, because the bound is for all of them.
_RESOLVER = Resolver()
_OWN_ADDRESSES = OwnAddresses()


class UrlGuard:
    """Judges URLs, and gives the addresses that may be connected to.

    allow_hosts: `host:port`, which may be fetched from although they are not public. One with an
        address is compared with what would be connected to, one with a name with the URL's host.
    refuse_networks: further networks that are refused, also within `allow_private_networks`
    allow_private_networks: whether every address and every port may be fetched from
    egress_proxy: URL of the proxy that fetches everything, and judges it in place of this guard
    on_refused: called with the reason of each refusal: `malformed`, `port`, `not_public`,
        `own_address`, `refused_network`, `unresolved`
    tick_s: a refusal after a look-up is told at the next multiple of this time after its beginning.
        How long the resolver takes would otherwise tell names that it knows from others.
    """

    def __init__(
        self,
        allow_hosts: Iterable[str] = (),
        refuse_networks: Iterable[str] = (),
        allow_private_networks: bool = False,
        egress_proxy: str | None = None,
        on_refused: Callable[[str], None] = lambda reason: None,
        resolver: Resolver = _RESOLVER,
        tick_s: float = _TICK_S,
    ) -> None:
        self._allow_hosts = tuple(allow_hosts)
        self._allowed = {_host_and_port(text) for text in self._allow_hosts}
        self._refused_networks = [ipaddress.ip_network(n) for n in refuse_networks]
        self._allow_private_networks = allow_private_networks
        self.egress_proxy = egress_proxy
        self._on_refused = on_refused
        self._resolver = resolver
        self._tick_s = tick_s

    def log_exceptions(self) -> None:
        """Log what differs from the default, and from what an operator may expect."""
        if self._allow_hosts:
            logger.warning("event=hosts_allowed hosts=%s", ",".join(self._allow_hosts))
        if self._allow_private_networks:
            logger.warning(
                "event=private_networks_allowed note="
                '"whoever can send a request can fetch from this machine and its network"'
            )
        if self.egress_proxy is not None:
            logger.warning(
                "event=egress_proxy_used note="
                '"the proxy decides what is fetched, and no address is judged here"'
            )
        elif getproxies_environment().keys() & {"http", "https", "all"}:
            logger.warning(
                "event=proxy_ignored note="
                '"the environment names a proxy, which only egress_proxy does for downloads"'
            )

    def read(self, url: str) -> HttpUrl:
        """The URL, if its form, its port and an address in it allow that it is fetched.

        Raises AudioUrlError.
        """
        return self._checked(lambda: HttpUrl.parse(url))

    def follow(self, url: HttpUrl, location: str) -> HttpUrl:
        """The URL to which a redirect leads; as `read`."""
        return self._checked(lambda: url.follow(location))

    def endpoints(
        self, host: str, port: int, timeout_s: float, sleep: Callable[[float], None]
    ) -> list[Endpoint]:
        """What to connect to for a host: exactly these addresses, in this order.

        host: a name or an address, without brackets
        timeout_s: for the look-up
        sleep: waits so many seconds, or raises

        Raises AudioUrlError if the host has no address, or one that must not be connected to,
        socket.gaierror if that cannot be found out for the moment, and what `Resolver.look_up`
        raises.
        """
        address = _literal(host)
        started = time.monotonic()
        if address is not None:
            found = [Endpoint.of(address, port)]
        else:
            found = self._looked_up(host, port, timeout_s)
        if refusal := self._refusal(host, port, found):
            if address is None:
                sleep(self._tick_s - (time.monotonic() - started) % self._tick_s)
            raise refusal
        return found[:_MAX_ADDRESSES]

    def _looked_up(self, host: str, port: int, timeout_s: float) -> list[Endpoint]:
        """The addresses of a name; none where it does not resolve."""
        try:
            return self._resolver.look_up(host, port, timeout_s)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN or self._is_proxy(host, port):
                raise
            return []

    def _checked(self, parse: Callable[[], HttpUrl]) -> HttpUrl:
        try:
            url = parse()
        except AudioUrlError:
            self._count("malformed")
            raise
        if self.egress_proxy is not None:
            return url
        self._check_port(url)
        if (address := _literal(url.host)) is not None:
            endpoints = [Endpoint.of(address, url.port)]
            if refusal := self._refusal(url.host, url.port, endpoints):
                raise refusal
        return url

    def _check_port(self, url: HttpUrl) -> None:
        port = url.port
        if port in (80, 443) or (port >= 1024 and port not in _BAD_PORTS):
            return
        if self._allow_private_networks or self._is_allowed(url.host, port):
            return
        self._count("port")
        raise AudioUrlError(
            f"port {port} is not fetched from: 80, 443 and most from 1024 on are"
        )

    def _refusal(
        self, host: str, port: int, endpoints: list[Endpoint]
    ) -> AudioUrlError | None:
        """The error for a host that must not be connected to; None where all its addresses may.

        Answers of both kinds are an attack or a fault, and which of them a later attempt would
        take is uncertain.
        """
        if not endpoints:
            self._count("unresolved")
            return AudioUrlError(NO_PUBLIC_ADDRESS)
        if self._is_allowed(host, port) or self._is_proxy(host, port):
            return None
        for endpoint in endpoints:
            text = str(endpoint.sockaddr[0]).partition("%")[0]
            address = plain(ipaddress.ip_address(text))
            if reason := self._why_not(address, port):
                self._count(reason, address)
                return AudioUrlError(NO_PUBLIC_ADDRESS)
        return None

    def _why_not(self, address: IpAddress, port: int) -> str | None:
        if self._is_allowed(str(address), port):
            return None
        if any(address in network for network in self._refused_networks):
            return "refused_network"
        if self._allow_private_networks:
            return None
        if not is_public(address):
            return "not_public"
        return "own_address" if address in _OWN_ADDRESSES else None

    def _is_allowed(self, host: str, port: int) -> bool:
        return (host.rstrip("."), port) in self._allowed

    def _is_proxy(self, host: str, port: int) -> bool:
        if self.egress_proxy is None:
            return False
        parts = urlsplit(self.egress_proxy)
        proxy = parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]
        return (host, port) == proxy

    def _count(self, reason: str, address: IpAddress | None = None) -> None:
        logger.warning("event=url_refused reason=%s address=%s", reason, address or "-")
        self._on_refused(reason)


def _literal(host: str) -> IpAddress | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]").rstrip(".").lower()
    address = _literal(host)
    return str(plain(address)) if address else host, int(port)
