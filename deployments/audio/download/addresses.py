"""Which IP addresses belong to the public internet.

The tables are this project's own, because the answers of `ipaddress` differ between versions of
Python, and call addresses global that lead into a cloud's internal services. Their sources are
IANA's registries of special-purpose addresses (RFC 6890) and, for IPv6, of allocated unicast space.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

import psutil

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# The unicast space that is allocated, and what is special within it.
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which leads to any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
# Addresses that hold an IPv4 address in their last 32 bits: mapped ones, and those of NAT64.
_HOLD_V4 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
# The interface identifiers of ISATAP (RFC 5214, section 6.1), without and with the universal bit.
_ISATAP = (0x00005EFE, 0x02005EFE)

_REREAD_S = 60.0


def plain(address: IpAddress) -> IpAddress:
    """The IPv4 address to which an IPv6 address of NAT64, or a mapped one, leads."""
    if isinstance(address, ipaddress.IPv6Address) and _within(address, _HOLD_V4):
        return _last_32_bits(address)
    return address


def is_public(address: IpAddress) -> bool:
    """Whether hosts of the public internet have such addresses.

    The verdict is the same on every version of Python.
    """
    address = plain(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not _within(address, _NOT_PUBLIC_V4)
    if address not in _UNICAST_V6 or _within(address, _NOT_PUBLIC_V6):
        return False
    is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    return not is_isatap or is_public(_last_32_bits(address))


def _within(address: IpAddress, networks: tuple[IpNetwork, ...]) -> bool:
    return any(address in network for network in networks)


def _last_32_bits(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class OwnAddresses:
    """The addresses of this machine's interfaces, read anew when a minute has passed.

    Ray and the application may listen on a public address of this machine, without its firewall in
    between.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: frozenset[IpAddress] = frozenset()
        self._read_at = -_REREAD_S

    def __contains__(self, address: IpAddress) -> bool:
        with self._lock:
            if self._clock() - self._read_at >= _REREAD_S:
                self._addresses = _interface_addresses()
                self._read_at = self._clock()
            return address in self._addresses


def _interface_addresses() -> frozenset[IpAddress]:
    return frozenset(
        ipaddress.ip_address(address.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    )
