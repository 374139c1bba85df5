"""HTTP within this machine: a free port, and a session without proxies."""

import socket

import requests


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens on an IPv4 or IPv6 address. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with listener(host, 0) as server:
        return int(server.getsockname()[1])


def session() -> requests.Session:
    """A session for this machine's own servers, which no proxy can reach."""
    session = requests.Session()
    session.trust_env = False
    return session
