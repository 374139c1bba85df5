"""Keys on the real service, which listens on all interfaces: through Serve's own proxy."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
import yaml

from deployments.keys import new_key
from deployments.local import loopback
from tests.support.app import AUDIO, ROOT, lan_address, wait_for
from tools.weights import weights, weights_environment

pytestmark = pytest.mark.slow

SERVE = [sys.executable, "-m", "deployments.local", "serve"]
PAGE = "https://page.example"


class Service:
    """`make serve` with a file of keys.

    url: at an address that other machines reach
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://{lan_address()}:{port}"
        self.keys_file = folder / "keys"
        self.key = self.let_in("alice")
        self.log = folder / "log"

    def let_in(self, name: str) -> str:
        """Make a key the only one."""
        key, line = new_key(name)
        self.keys_file.write_text(f"# who may\n{line}\n")
        return key

    def status(self, key: str) -> int:
        headers = {"x-api-key": key}
        answer = requests.get(f"{self.url}/models", headers=headers, timeout=60)
        return answer.status_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, configured for one small model on all interfaces."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "deployments", folder / "deployments")
    content = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    content["http_options"] = {
        "host": "0.0.0.0",
        "port": loopback.free_port("0.0.0.0"),
    }
    content["applications"][0]["args"] = {
        "default_model": "tiny.en",
        "models": [{"name": "tiny.en"}],
        "device": "cpu",
        "allowed_origins": [PAGE],
    }
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    weights("tiny.en")
    content = yaml.safe_load((folder / "serve_config.yaml").read_text())
    service = Service(folder, content["http_options"]["port"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in weights_environment().items():
            patch.setenv(name, value)
        # As a user would write it, in the folder from which the service is started.
        patch.setenv("API_KEYS_FILE", "keys")
        with (
            service.log.open("wb") as log,
            subprocess.Popen(SERVE, cwd=folder, stdout=log, stderr=log) as server,
        ):
            try:
                wait_for(lambda: "\nserving on" in service.log.read_text(), 300)
                yield service
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=60)


def test_without_a_decision_about_keys_the_service_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("API_KEYS", raising=False)
    done = subprocess.run(
        SERVE, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    [told] = done.stderr.splitlines()
    assert told.startswith("error: other machines can reach 0.0.0.0, and there are no")


def test_one_key_opens_the_service_to_openais_sdk_and_others_do_not(
    service: Service,
) -> None:
    assert requests.get(f"{service.url}/health", timeout=60).ok
    answer = requests.post(
        f"{service.url}/transcribe",
        data=(ROOT / "test_input.json").read_bytes(),
        headers={"Authorization": f"Bearer {service.key}", "x-request-id": "mine"},
        timeout=300,
    )
    assert answer.status_code == 200
    wait_for(lambda: "request_id=mine " in service.log.read_text())
    [line] = [x for x in service.log.read_text().splitlines() if "request_id=mine" in x]
    assert line.endswith(" key=alice")
    assert service.key not in service.log.read_text()
    client = openai.OpenAI(api_key="wrong", base_url=f"{service.url}/v1")
    with pytest.raises(openai.AuthenticationError) as caught:
        client.audio.transcriptions.create(
            model="whisper-1", file=(AUDIO / "jfk.flac").open("rb")
        )
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


def test_a_body_without_a_key_is_refused_before_it_is_sent(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_an_allowed_page_can_read_a_refusal_and_no_other_page_may_post(
    service: Service,
) -> None:
    url = f"{service.url}/transcribe"
    refused = requests.post(url, headers={"Origin": PAGE}, timeout=60)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE
    headers = {"Origin": "https://evil.example", "x-api-key": service.key}
    forbidden = requests.post(url, headers=headers, timeout=60)
    assert (forbidden.status_code, forbidden.json()["type"]) == (403, "cross_site")


def test_a_file_of_keys_that_changes_is_read_again(service: Service) -> None:
    old, service.key = service.key, service.let_in("bob")
    wait_for(lambda: service.status(service.key) == 200)
    assert service.status(old) == 401
    service.keys_file.write_text("bob:half")
    wait_for(
        lambda: (
            service.status(service.key) == 200
            and "event=keys_refused" in service.log.read_text()
        )
    )
