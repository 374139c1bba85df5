"""The port that Serve opens in each replica, kept from other machines.

Serve's replicas listen for other deployments by gRPC on all interfaces, whatever address Ray's node
has. Handles do not use this port unless RAY_SERVE_USE_GRPC_BY_DEFAULT is set, and Serve has no
option for its address. So a replica binds its listening sockets to the loopback device, if Ray's
node listens on loopback as well. Linux lets a process without privileges do this from 5.7 on.

This module relies on ray 2.60: Serve opens the port in the replica's own process, and before it
asks `check_health` for the first time. tests/end_to_end/test_ports.py holds that no port of a
running service can be reached from another machine.
"""

import functools
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator

import ray

logger = logging.getLogger(__name__)

_LOOPBACK_DEVICE = b"lo"


@functools.cache
def keep_ports_on_loopback() -> None:
    """Keep other machines from this process's ports, where Ray's node is on loopback itself.

    Once is enough, because Serve opens no port later.
    """
    if ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        bind_to_loopback()


def bind_to_loopback() -> None:
    """Bind each socket of this process that listens on all interfaces to the loopback device."""
    for listener in _sockets():
        with listener:
            if not _listens_everywhere(listener):
                continue
            try:
                listener.setsockopt(
                    socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _LOOPBACK_DEVICE
                )
            except OSError as error:
                port = listener.getsockname()[1]
                logger.error("event=port_open port=%d reason=%s", port, error.strerror)


def _sockets() -> Iterator[socket.socket]:
    """Duplicates of this process's sockets."""
    for name in os.listdir("/proc/self/fd"):
        try:
            duplicate = os.dup(int(name))
        except OSError:
            # It was closed meanwhile.
            continue
        try:
            yield socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)


def _listens_everywhere(given: socket.socket) -> bool:
    if given.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return bool(listens) and given.getsockname()[0] in ("0.0.0.0", "::")
