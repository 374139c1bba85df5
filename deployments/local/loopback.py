"""HTTP within this machine: a free port, and a session without proxies."""

import errno
import random
import socket

import requests

# Linux by default takes the ports from 32768 on for outgoing connections, so one of them could be
# taken before the caller listens on it. Ray's workers have the ports up to 19999.
_PORTS = range(20_000, 32_768)


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens on an IPv4 or IPv6 address. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def free_port(host: str) -> int:
    """A port that nothing listens on now. Raises OSError, also where there is none."""
    for port in random.sample(_PORTS, len(_PORTS)):
        try:
            with listener(host, port):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no port of {host} is free")


def session() -> requests.Session:
    """A session for this machine's own servers, which no proxy can reach."""
    session = requests.Session()
    session.trust_env = False
    return session
