from pathlib import Path

import pytest

from deployments.local import loopback
from tests.support.http_server import served_file


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
    with served_file(tmp_path / "a") as url:
        assert loopback.session().get(url, timeout=10).content == b"a"
