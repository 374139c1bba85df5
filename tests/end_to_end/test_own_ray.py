"""Serve's own commands with this project's configuration, in a Ray that a user has started."""

import contextlib
import http.client
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from deployments.keys import new_key
from deployments.local import loopback
from deployments.serve_config import CONFIG
from tests.support import traffic
from tests.support.app import lan_address, wait_for
from tests.support.own_ray import ROOT, OwnRay, own_ray
from tools.weights import weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def user() -> Iterator[OwnRay]:
    weights("tiny.en")
    with own_ray() as user:
        yield user


@pytest.fixture(scope="module")
def port() -> int:
    return loopback.free_port("127.0.0.1")


def configuration(
    folder: Path,
    port: int,
    http_options: dict[str, Any] | None = None,
    **application: Any,
) -> str:
    """The path of the shipped configuration with one model, on a port of its own."""
    content = yaml.safe_load(CONFIG.read_text())
    content["http_options"] |= {"host": "0.0.0.0", "port": port} | (http_options or {})
    content["applications"][0] |= application
    args = {
        "default_model": "tiny.en",
        "models": [{"name": "tiny.en"}],
        "device": "cpu",
    }
    content["applications"][0]["args"] |= args
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def health(url: str) -> str:
    """The name of the application that answers; empty while none does."""
    try:
        return str(requests.get(f"{url}/health", timeout=10).json()["application"])
    except (requests.RequestException, KeyError, ValueError):
        return ""


def test_serve_deploy_and_serve_status_know_the_application_by_any_name(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    file = configuration(tmp_path, port, name="speech", route_prefix="/to/text")
    user.serve("deploy", "--address", user.dashboard, file)
    root = f"http://127.0.0.1:{port}"
    wait_for(lambda: health(f"{root}/to/text") == "speech", 300)

    def status() -> str:
        told = yaml.safe_load(user.serve("status", "--address", user.dashboard))
        return str(told["applications"]["speech"]["status"])

    wait_for(lambda: status() == "RUNNING", 300)
    answer = requests.post(
        f"{root}/to/text/transcribe",
        data=(ROOT / "test_input.json").read_bytes(),
        headers={"x-request-id": "no id of a line"},
        timeout=300,
    )
    assert "fellow Americans" in answer.json()["transcription"]
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    for path in ("docs", "docs/init.js", "openapi.json"):
        assert requests.get(f"{root}/to/text/{path}", timeout=60).status_code == 200
    elsewhere = requests.get(f"{root}/transcribe", timeout=10)
    assert elsewhere.status_code == 404
    assert elsewhere.json() == {
        "error": "Not found: no application is at this path",
        "type": "not_found",
    }
    assert requests.get(f"{root}/-/healthz", timeout=10).text == "success"
    # Nobody has said whether other machines need a key.
    lan = f"http://{lan_address()}:{port}/to/text"
    assert health(lan) == "speech"
    refused = requests.get(f"{lan}/openapi.json", timeout=60)
    assert (refused.status_code, refused.json()["type"]) == (403, "keys_not_set")


def test_a_service_goes_on_where_it_is_deployed_again_with_a_mistake(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    file = configuration(tmp_path, port, name="speech", route_prefix="/to/text")
    user.serve("deploy", "--address", user.dashboard, file)
    url = f"http://127.0.0.1:{port}/to/text"
    asked: list[int] = []

    def ready() -> int:
        asked.append(requests.get(f"{url}/ready", timeout=60).status_code)
        return asked[-1]

    def status() -> str:
        told = yaml.safe_load(user.serve("status", "--address", user.dashboard))
        return str(told["applications"]["speech"]["status"])

    wait_for(lambda: health(url) == "speech", 300)
    wait_for(lambda: ready() == 200, 300)
    asked.clear()
    content = yaml.safe_load(Path(file).read_text())
    content["applications"][0]["args"]["models"] = [{"name": "no-such-model"}]
    Path(file).write_text(yaml.safe_dump(content))
    user.serve("deploy", "--address", user.dashboard, file)
    wait_for(lambda: ready() == 200 and status() == "DEPLOY_FAILED", 300)
    # The readiness that the service remembers ends after a second.
    time.sleep(1.1)
    assert ready() == 200
    assert set(asked) == {200}
    answer = requests.post(
        f"{url}/transcribe", data=(ROOT / "test_input.json").read_bytes(), timeout=300
    )
    assert "fellow Americans" in answer.json()["transcription"]


def test_keys_may_come_with_the_applications_own_environment(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    key, line = new_key("alice")
    file = configuration(
        tmp_path,
        port,
        name="guarded",
        route_prefix="/guarded",
        runtime_env={"env_vars": {"API_KEYS": line}},
    )
    user.serve("deploy", "--address", user.dashboard, file)
    url = f"http://{lan_address()}:{port}/guarded"
    wait_for(lambda: health(url) == "guarded", 300)
    assert requests.get(f"{url}/models", timeout=60).status_code == 401
    answer = requests.get(f"{url}/models", headers={"x-api-key": key}, timeout=60)
    assert answer.status_code == 200


def test_serve_run_starts_the_application_and_ends_it(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    file = configuration(tmp_path, port, name="another", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    with user.running("run", "--address", user.address, file):
        wait_for(lambda: health(url) == "another", 300)
    wait_for(lambda: health(url) == "", 300)


def test_a_drain_before_serve_shutdown_loses_no_request(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    file = configuration(tmp_path, port, name="drained", route_prefix="/drained")
    content = yaml.safe_load(Path(file).read_text())
    content["applications"][0]["args"] |= traffic.ARGS
    Path(file).write_text(yaml.safe_dump(content))
    user.serve("deploy", "--address", user.dashboard, file)
    url = f"http://127.0.0.1:{port}/drained"

    def ready() -> int:
        try:
            return requests.get(f"{url}/ready", timeout=60).status_code
        except requests.RequestException:
            return 0

    wait_for(lambda: ready() == 200, 300)
    requested = traffic.Traffic(url)
    with requested.running(), ThreadPoolExecutor(1) as threads:
        command = threads.submit(user.python, "-m", "deployments.drain", "drained")
        wait_for(lambda: ready() == 503)
        assert requested.new_request() == traffic.REFUSED
        requested.let_go.set()
        told = command.result(300)
        # With requests in work, this would end the proxy that holds them.
        user.serve("shutdown", "--yes", "--address", user.dashboard)
    accepted = re.match(r"waiting for (\d+) requests, at most \d+ s\n", told)
    assert accepted is not None, told
    assert requested.answered() == int(accepted[1]) > 4
    assert told.endswith("drained\n")
    wait_for(lambda: ready() == 0)


def test_a_large_upload_that_meets_serves_limit_is_not_to_be_sent_again(
    user: OwnRay, port: int, tmp_path: Path
) -> None:
    # Serve takes new options of its proxy at its start only.
    user.serve("shutdown", "--yes", "--address", user.dashboard)
    file = configuration(tmp_path, port, http_options={"request_timeout_s": 5})
    user.serve("deploy", "--address", user.dashboard, file)
    wait_for(lambda: health(f"http://127.0.0.1:{port}") == "whisper", 300)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Type", "audio/wav")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        # After these bytes the application reports to the proxy, and then nothing more comes.
        connection.send(bytes(1_000_000))
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
    user.serve("shutdown", "--yes", "--address", user.dashboard)
    assert answer.status == 504
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["retry-after"] is None
    assert error["code"] == "request_timeout"
    assert "http_options.request_timeout_s" in error["message"]
