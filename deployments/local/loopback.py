"""This machine's own servers: a free port, a session that no proxy intercepts, and one file over HTTP."""

import contextlib
import http.server
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import requests


@contextlib.contextmanager
def served(path: Path) -> Iterator[str]:
    """The URL of a file on a loopback server of its own, under a name that nobody guesses."""
    name = f"/{secrets.token_hex(16)}"

    class OneFile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != name:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            # The reader may have enough before the end, at a limit of size.
            with path.open("rb") as file, contextlib.suppress(ConnectionError):
                shutil.copyfileobj(file, self.wfile)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{name}"
        finally:
            server.shutdown()


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def session() -> requests.Session:
    """For this machine's own servers, which no proxy can reach."""
    session = requests.Session()
    session.trust_env = False
    return session
