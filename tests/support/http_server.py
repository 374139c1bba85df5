"""An ASGI application on a port of loopback, for clients that need a real connection."""

import contextlib
import threading
from collections.abc import Iterator

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
