"""A server on this machine that stands in for OpenAI's, with one small file for all models."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments import catalog

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class CheckpointServer:
    """What the server answers, and the paths that it was asked for.

    cuts: how many answers end halfway
    resume: in the middle of an answer, the server waits until this is set
    meeting: every request waits here for the others
    """

    address: str = ""
    content: bytes = CONTENT
    status: int = 200
    cuts: int = 0
    resume: threading.Event = field(default_factory=threading.Event)
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running() -> Iterator[CheckpointServer]:
    server = CheckpointServer()
    server.resume.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            server.meeting.wait(timeout=20)
            # The client hangs up on a status it does not like.
            with contextlib.suppress(ConnectionError):
                self.answer()

        def answer(self) -> None:
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            half = len(server.content) // 2
            self.wfile.write(server.content[:half])
            self.wfile.flush()
            server.resume.wait(timeout=20)
            if server.cuts:
                server.cuts -= 1
            else:
                self.wfile.write(server.content[half:])

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def serve_from(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have every official model's URL lead to `address`."""
    url = property(lambda model: f"{address}/{model.filename}")
    monkeypatch.setattr(catalog.OfficialModel, "url", url)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def says_where(text: str) -> bool:
    """Whether a text names a host, a URL or a folder."""
    return any(mark in text for mark in ("127.0.0.1", "://", "azure", "/"))
