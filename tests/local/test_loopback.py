from pathlib import Path

import pytest
import requests

from deployments.local import loopback


def test_one_file_is_served_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "speech.mp3"
    path.write_bytes(b"sound" * 1000)
    with loopback.served(path) as url:
        answer = loopback.session().get(url, timeout=10)
        assert answer.content == path.read_bytes()
        assert answer.headers["Content-Length"] == "5000"
        base = url.rpartition("/")[0]
        for other in ("/", "/speech.mp3", "/.."):
            assert loopback.session().get(base + other, timeout=10).status_code == 404
    with pytest.raises(requests.ConnectionError):
        loopback.session().get(url, timeout=10)


def test_each_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with loopback.served(tmp_path / "a") as one, loopback.served(tmp_path / "a") as two:
        assert one.rpartition("/")[2] != two.rpartition("/")[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::", "0.0.0.0"])
def test_a_free_port_can_be_listened_on(host: str) -> None:
    port = loopback.free_port(host)
    with loopback.listener(host, port) as listener:
        assert listener.getsockname()[1] == port
        with pytest.raises(OSError, match="in use"):
            loopback.listener(host, port)


def test_the_session_uses_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with loopback.served(tmp_path / "a") as url:
        assert loopback.session().get(url, timeout=10).content == b"a"
