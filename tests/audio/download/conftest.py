"""What each test of a download has around it."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.downloads import open_files
from tests.support.misbehaving_server import MisbehavingServer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; after the test none is left there, by name or merely open."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []
    assert not [path for path in open_files() if path.startswith(str(folder))]
    assert not [t for t in threading.enumerate() if t.name == "fetch"]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything logged; after the test it holds neither the query nor the host."""
    with caplog.at_level(logging.DEBUG):
        yield caplog
    for secret in ("SECRET", "signature", "127.0.0.1", "speech.mp3"):
        assert secret not in caplog.text


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server
