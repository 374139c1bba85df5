import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deployments import catalog
from deployments.checkpoints import download, store
from tests.support import checkpoint_server
from tests.support.checkpoint_server import SHA256, CheckpointServer, serve_from

SMALL = ("base", "medium", "turbo", "large-v3")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for caches, and small models under the official names."""
    monkeypatch.delenv("WHISPER_CHECKPOINT_DIR", raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "RUNPOD_VOLUME", tmp_path / "runpod-volume")
    monkeypatch.setattr(download, "RETRY_AFTER_S", 0)
    for name in SMALL:
        small = replace(catalog.MODELS[name], sha256=SHA256)
        monkeypatch.setitem(catalog.MODELS, name, small)
    return tmp_path


@pytest.fixture
def cache(home: Path) -> Path:
    """Whisper's own cache folder in that home; nothing has made it yet."""
    return home / "cache" / "whisper"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointServer]:
    with checkpoint_server.running() as running:
        serve_from(monkeypatch, running.address)
        yield running


@pytest.fixture
def no_route(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses connections in the place of OpenAI's server."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    serve_from(monkeypatch, f"http://127.0.0.1:{port}")
