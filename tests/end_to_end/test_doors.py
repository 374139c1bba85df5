"""HTTP and Python handles speak one contract."""

import io
import json
import subprocess
import sys
from typing import Any

import pytest
import requests
from ray import serve

from deployments import catalog, serve_config
from deployments.local import commands
from deployments.ray_node import handle_environment
from tests.support.app import (
    AUDIO,
    ROOT,
    App,
    Url,
    clean_environment,
    session_logs,
)
from tests.support.security_headers import missing
from tools.official import assert_official

CLIENT = """
import asyncio, json, sys
import ray
from ray import serve
from deployments.contract.errors import AudioHostError

ray.init(log_to_driver=False, namespace="client")
request = json.loads(sys.argv[1])
by_app = serve.get_app_handle("whisper")
print(json.dumps(by_app.transcribe.remote(request).result()))

async def main():
    by_name = serve.get_deployment_handle("Router", "whisper")
    print(json.dumps(await by_name.transcribe.remote(request)))
    try:
        await by_name.transcribe.remote({"audio": "http://127.0.0.1:9/"})
    except AudioHostError as error:
        print(json.dumps([str(error.cause), error.cause.status, error.cause.type]))

asyncio.run(main())
"""


def test_both_handle_calls_from_another_process(app: App, audio_url: Url) -> None:
    request = {"audio": audio_url("jfk.flac"), "model": "tiny.en"}
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(request)],
        cwd=ROOT,
        env=clean_environment(handle_environment()),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert client.returncode == 0, client.stderr
    lines = [json.loads(line) for line in client.stdout.splitlines()[-3:]]
    for answer in lines[:2]:
        assert_official(answer, "tiny.en", "jfk.flac")
    assert lines[2] == [
        "Audio download failed: connection refused",
        502,
        "audio_host_error",
    ]


def test_a_stream_of_events_ends_with_the_result(app: App, audio_url: Url) -> None:
    handle = serve.get_app_handle("whisper").options(stream=True)
    request = {"audio": audio_url("jfk.flac"), "model": "tiny.en"}
    stream: Any = handle.stream.remote(request)
    events: list[dict[str, Any]] = list(stream)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "stage" and kinds[-1] == "result"
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages[:2] == ["downloading", "decoding"] and stages[-1] == "transcribing"
    done = [event["done"] for event in events if event["event"] == "progress"]
    assert done == sorted(done) and done[0] == 0.0 and done[-1] == 11.0
    result = events[-1]["result"]
    assert_official(result, "tiny.en", "jfk.flac")
    segments = [event["segment"] for event in events if event["event"] == "segment"]
    assert segments == result["segments"]


def test_health_names_the_application(app: App, impatient: App) -> None:
    for served, name in [(app, "whisper"), (impatient, "impatient")]:
        response = requests.get(f"{served.url}/health", timeout=60)
        assert response.status_code == 200
        assert response.json()["application"] == name


def test_head_is_answered_and_a_wrong_method_is_told_the_right_one(app: App) -> None:
    head = requests.head(f"{app.url}/health", timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    wrong = requests.get(f"{app.url}/transcribe", timeout=10)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_every_answer_over_http_has_the_security_headers(app: App) -> None:
    answers = [
        requests.request(method, f"{app.url}{path}", timeout=60)
        for method, path in [
            ("GET", "/health"),
            ("GET", "/docs"),
            ("HEAD", "/openapi.json"),
            ("GET", "/nowhere"),
            ("POST", "/transcribe"),
            ("DELETE", "/v1/models"),
            ("OPTIONS", "/v1/audio/transcriptions"),
            # Serve's proxy answers these by itself.
            ("GET", "/-/healthz"),
            ("GET", "/-/routes"),
        ]
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 200, 404, 422, 405, 405, 200, 200]
    for answer in answers:
        assert missing(answer.headers) == [], answer.url


def test_the_docs_of_an_application_below_a_prefix_find_its_schema(
    impatient: App,
) -> None:
    for path in ("docs", "docs/init.js", "docs/swagger-ui.css"):
        assert requests.get(f"{impatient.url}/{path}", timeout=60).status_code == 200
    # The page asks for the schema beside itself.
    schema = requests.get(f"{impatient.url}/openapi.json", timeout=60).json()
    assert schema["servers"] == [{"url": "/impatient"}]


def test_the_list_of_models_shows_weights_and_replicas(app: App) -> None:
    models = requests.get(f"{app.url}/models", timeout=10).json()["data"]
    by_name = {m["name"]: m for m in models if m["id"] == m["name"]}
    assert set(by_name) == {*catalog.MODELS, "random-v3", "corrupt"}
    base, large = by_name["base"], by_name["large-v3"]
    assert base["default"] and base["weights_cached"]
    assert base["running_replicas"] == 1
    assert base["parameters"] == 74_000_000
    assert (base["slots"], base["slots_in_use"], base["windows_waiting"]) == (8, 0, 0)
    assert not large["weights_cached"] and large["running_replicas"] == 0
    assert large["slots"] is large["slots_in_use"] is large["windows_waiting"] is None
    assert large["aliases"] == ["large"]


def test_the_example_of_the_interactive_docs_runs_as_it_stands(app: App) -> None:
    assert "swagger" in requests.get(f"{app.url}/docs", timeout=10).text
    api = requests.get(f"{app.url}/openapi.json", timeout=10).json()
    body = api["paths"]["/transcribe"]["post"]["requestBody"]
    example = body["content"]["application/json"]["example"]
    answer = app.transcribe(**example)
    assert "fellow Americans" in answer["transcription"]


def test_the_request_id_is_the_callers_own_in_header_and_body(
    app: App, audio_url: Url
) -> None:
    response = requests.post(
        f"{app.url}/transcribe",
        json={"audio": audio_url("silence.wav"), "model": "tiny.en"},
        headers={"x-request-id": "my-own-id"},
        timeout=60,
    )
    assert response.headers["x-request-id"] == "my-own-id"
    assert response.json()["request_id"] == "my-own-id"


def test_an_id_that_fits_no_line_of_the_log_is_replaced_in_header_and_body_alike(
    app: App, audio_url: Url
) -> None:
    response = requests.post(
        f"{app.url}/transcribe",
        json={"audio": audio_url("silence.wav"), "model": "tiny.en"},
        headers={"x-request-id": "no id of a line"},
        timeout=60,
    )
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert " " not in response.headers["x-request-id"]


def test_every_answer_has_one_request_id_which_is_the_one_in_the_log(app: App) -> None:
    answers = [
        (app.post(audio=""), 422, "invalid_request"),
        (requests.get(f"{app.url}/nothing", timeout=10), 404, "not_found"),
        (requests.get(f"{app.url}/transcribe", timeout=10), 405, "method_not_allowed"),
        (
            requests.post(
                f"{app.url}/transcribe",
                data=b"a",
                headers={"Content-Type": "image/png"},
                timeout=10,
            ),
            415,
            "unsupported_media_type",
        ),
    ]
    [file] = session_logs().glob("serve/replica_whisper_Router_*.log")
    log = file.read_text()
    for response, status, reason in answers:
        assert response.status_code == status
        request_id = response.headers["x-request-id"]
        line = f"request_id={request_id} model=- status={status} reason={reason} "
        assert log.count(line) == 1


def test_the_local_command_uses_an_application_that_runs(app: App) -> None:
    host, port = app.url.removeprefix("http://").split(":")
    config, args = serve_config.read_config()
    config.http_options.host, config.http_options.port = host, int(port)
    out = io.StringIO()
    fields = json.dumps({"model": "tiny.en", "beam_size": None})
    commands.transcribe(config, args, str(AUDIO / "jfk.flac"), fields, out)
    assert_official(json.loads(out.getvalue()), "tiny.en", "jfk.flac", beam_size=None)


def test_what_the_application_refuses_is_the_error_of_the_local_command(
    app: App,
) -> None:
    host, port = app.url.removeprefix("http://").split(":")
    config, args = serve_config.read_config()
    config.http_options.host, config.http_options.port = host, int(port)
    with pytest.raises(commands.CommandError, match="^Audio decoding failed: "):
        commands.transcribe(
            config, args, str(AUDIO / "ffmpeg.npz"), "{}", io.StringIO()
        )
