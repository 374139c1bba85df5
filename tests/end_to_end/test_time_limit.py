"""Serve's own limit of time for a request, in a Ray of its own."""

import http.client
import json
from pathlib import Path

import pytest

from deployments.local import loopback
from tests.end_to_end.test_own_ray import configuration, health
from tests.support.app import wait_for
from tests.support.own_ray import own_ray
from tools.weights import weights

pytestmark = pytest.mark.slow


def test_a_large_upload_that_meets_serves_limit_is_not_to_be_sent_again(
    tmp_path: Path,
) -> None:
    weights("tiny.en")
    port = loopback.free_port("127.0.0.1")
    file = configuration(tmp_path, port, http_options={"request_timeout_s": 5})
    with own_ray() as user:
        user.serve("deploy", "--address", user.dashboard, file)
        wait_for(lambda: health(f"http://127.0.0.1:{port}") == "whisper", 300)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("POST", "/v1/audio/transcriptions")
        connection.putheader("Content-Type", "audio/wav")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        # After these bytes the application reports to the proxy, and then nothing more comes.
        connection.send(bytes(1_000_000))
        answer = connection.getresponse()
        assert answer.status == 504
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["retry-after"] is None
        error = json.loads(answer.read())["error"]
        assert error["code"] == "request_timeout"
        assert "http_options.request_timeout_s" in error["message"]
