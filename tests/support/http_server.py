"""HTTP servers on a port of loopback: of an ASGI application, and of one file."""

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from deployments.local import loopback
from deployments.serve_config import server_url


@contextlib.contextmanager
def served_app(app: ASGIApp) -> Iterator[str]:
    """Serve an application in a thread, by uvicorn as Ray Serve does; gives its URL."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
    )
    # The socket listens already: a connection waits there until the server accepts it.
    with loopback.listener("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield server_url("127.0.0.1", listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def served_file(path: Path) -> Iterator[str]:
    """Serve one file under any path; gives a URL of it."""

    class OneFile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            # A reader that has reached its size limit closes the connection before the end.
            with path.open("rb") as file, contextlib.suppress(ConnectionError):
                shutil.copyfileobj(file, self.wfile)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server_url("127.0.0.1", server.server_port) + "/recording"
        finally:
            server.shutdown()
