"""Ports that are open to callers by IPv6 and by IPv4."""

import socket


def address_family() -> socket.AddressFamily:
    """IPv6 where its sockets also take callers by IPv4; otherwise IPv4."""
    return socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET


def all_interfaces() -> str:
    """The address to listen on for callers by IPv6 and by IPv4; the latter's alone without IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def check_port(port: int) -> None:
    """Raises OSError if `all_interfaces` cannot be listened on at this port."""
    server = socket.create_server(
        (all_interfaces(), port),
        family=address_family(),
        dualstack_ipv6=socket.has_dualstack_ipv6(),
    )
    server.close()
