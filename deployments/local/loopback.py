"""HTTP within this machine: a server of one file, a free port, and a session without proxies."""

import contextlib
import http.server
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import requests

from deployments.serve_config import server_url


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    """Serve one file on loopback, under a name that nobody can guess; gives its URL."""
    name = f"/{secrets.token_hex(16)}"

    class OneFile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != name:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            # A reader that has reached its size limit closes the connection before the end.
            with path.open("rb") as file, contextlib.suppress(ConnectionError):
                shutil.copyfileobj(file, self.wfile)

        def log_message(self, *_: object) -> None:
            pass

    with _loopback_server(OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server_url(str(server.server_address[0]), server.server_port) + name
        finally:
            server.shutdown()


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens on an IPv4 or IPv6 address. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with listener(host, 0) as server:
        return int(server.getsockname()[1])


class _ServerOnIPv6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _loopback_server(
    handler: type[http.server.BaseHTTPRequestHandler],
) -> http.server.ThreadingHTTPServer:
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    except OSError:
        # This machine has IPv6 alone.
        return _ServerOnIPv6(("::1", 0), handler)


def session() -> requests.Session:
    """A session for this machine's own servers, which no proxy can reach."""
    session = requests.Session()
    session.trust_env = False
    return session
