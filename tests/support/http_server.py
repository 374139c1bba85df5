"""An application on a real port of loopback, without Ray."""

import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from tests.support.app import wait_for


@contextlib.contextmanager
def served_app(app: FastAPI) -> Iterator[str]:
    """Serve the application in a thread; gives its URL without a slash at the end."""
    config = uvicorn.Config(app, "127.0.0.1", 0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        [socket] = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
