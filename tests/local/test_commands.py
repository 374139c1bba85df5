"""The local commands without Ray: what is refused before anything starts."""

import http.server
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments import checkpoints, serve_config
from deployments.config import AppArgs
from deployments.local import commands, loopback
from deployments.ray_node import StartError

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

AUDIO = Path(__file__).parents[1] / "audio"


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    class StartedError(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise StartedError

    monkeypatch.setattr(commands, "running_app", start)
    # A command settles these for its own process.
    monkeypatch.setenv("API_KEYS", "")
    monkeypatch.setenv("API_KEYS_FILE", "")


@pytest.fixture
def config() -> "ServeDeploySchema":
    """The shipped configuration, with a port that nothing listens on."""
    config, _ = serve_config.read_config()
    config.http_options.port = loopback.free_port(config.http_options.host)
    return config


def refusal(
    config: "ServeDeploySchema", audio: str, fields: str, out: io.StringIO
) -> str:
    with pytest.raises(commands.CommandError) as caught:
        commands.transcribe(config, AppArgs(), audio, fields, out)
    return str(caught.value)


ARGS = """ARGS must be a JSON object, such as '{"language": "pt"}'"""


@pytest.mark.parametrize(
    ("audio", "fields", "text"),
    [
        (
            "https://example.com/a.mp3",
            '{"model": "tiny.en", "task": "translate"}',
            "Invalid task: model 'tiny.en' knows English only and cannot translate",
        ),
        ("nothing.wav", "{}", "no such file: nothing.wav"),
        ("https://example.com/a.mp3", "[]", ARGS),
        ("https://example.com/a.mp3", "{", ARGS),
        (
            "https://example.com/a.mp3",
            '{"beam_size": 99}',
            "Invalid beam_size: must be an integer between 1 and 10",
        ),
        (
            "https://example.com/a.mp3",
            '{"model": "huge"}',
            "Invalid model: 'huge'. Valid models: tiny.en, ",
        ),
    ],
)
def test_a_wrong_call_fails_before_anything_starts(
    config: "ServeDeploySchema", audio: str, fields: str, text: str
) -> None:
    out = io.StringIO()
    assert refusal(config, audio, fields, out).startswith(text)
    assert out.getvalue() == ""


def test_a_port_in_use_is_reported(config: "ServeDeploySchema") -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = config.http_options.port = server.getsockname()[1]
        with pytest.raises(commands.CommandError) as caught:
            commands.serve(config, AppArgs())
    assert str(caught.value).startswith(f"port {port} on 127.0.0.1 is in use")


def test_other_machines_are_not_served_before_a_decision_about_keys(
    config: "ServeDeploySchema",
) -> None:
    config.http_options.host = "0.0.0.0"
    with pytest.raises(StartError, match=r"^other machines can reach 0\.0\.0\.0, and"):
        commands.serve(config, AppArgs())


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 70])
def test_an_address_of_another_machine_is_told_before_anything_starts(
    config: "ServeDeploySchema", host: str
) -> None:
    config.http_options.host = host
    out = io.StringIO()
    told = refusal(config, "https://example.com/a.mp3", "{}", out)
    assert told.startswith(f"cannot listen on {host}: ")
    assert told.endswith("; see http_options in serve_config.yaml")
    with pytest.raises(commands.CommandError) as caught:
        commands.serve(config, AppArgs())
    port = config.http_options.port
    told = f"cannot listen on {host}, port {port}: "
    assert str(caught.value).startswith(told)


@contextmanager
def answering(port: int, body: bytes) -> Iterator[list[str]]:
    """A server on this port that answers everything alike.

    Gives the paths that it was asked for, each with the key that came with it.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.headers.get("Authorization")
            asked.append(f"{self.path} {key}" if key else self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


def test_an_application_that_runs_is_used(config: "ServeDeploySchema") -> None:
    out = io.StringIO()
    with answering(config.http_options.port, b'{"application": "whisper"}') as asked:
        commands.transcribe(config, AppArgs(), str(AUDIO / "jfk.mp3"), "{}", out)
    assert asked == ["/health", "/transcribe"]
    assert out.getvalue() == '{\n  "application": "whisper"\n}\n'


def test_the_users_key_opens_an_application_that_needs_one(
    config: "ServeDeploySchema", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_API_KEY", "a-key")
    with answering(config.http_options.port, b'{"application": "whisper"}') as asked:
        commands.transcribe(
            config, AppArgs(), str(AUDIO / "jfk.mp3"), "{}", io.StringIO()
        )
    assert asked == ["/health", "/transcribe Bearer a-key"]


@pytest.mark.parametrize(
    "body", [b'{"application": "another"}', b'["whisper"]', b"<html>"]
)
def test_another_server_on_the_port_is_left_alone(
    config: "ServeDeploySchema", body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(
        checkpoints, "fetch", lambda name, *_, **__: fetched.append(name)
    )
    with (
        answering(config.http_options.port, body) as asked,
        pytest.raises(Exception, match="^$") as caught,
    ):
        commands.transcribe(
            config,
            AppArgs(),
            str(AUDIO / "jfk.mp3"),
            '{"model": "tiny"}',
            io.StringIO(),
        )
    assert type(caught.value).__name__ == "StartedError"
    assert asked == ["/health"]
    assert fetched == ["base", "tiny"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[AppArgs]:
    """The arguments of each application that would be started; all weights are there."""
    started: list[AppArgs] = []

    def start(_: Any, args: AppArgs, *__: Any, **___: Any) -> None:
        started.append(args)
        raise StartError("not in this test")

    monkeypatch.setattr(commands, "running_app", start)
    monkeypatch.setattr(checkpoints, "fetch", lambda *_, **__: None)
    return started


@pytest.mark.parametrize("allowed", [False, True])
def test_private_networks_are_allowed_on_demand_and_the_user_is_told(
    config: "ServeDeploySchema",
    started: list[AppArgs],
    capsys: pytest.CaptureFixture[str],
    allowed: bool,
) -> None:
    with pytest.raises(StartError):
        commands.serve(config, AppArgs(), allow_private_networks=allowed)
    assert [args.allow_private_networks for args in started] == [allowed]
    assert ("private networks are allowed: " in capsys.readouterr().err) is allowed


def test_private_networks_are_not_allowed_on_demand_for_other_machines(
    config: "ServeDeploySchema", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", "none")
    config.http_options.host = "0.0.0.0"
    with pytest.raises(commands.CommandError, match="only this machine reaches"):
        commands.serve(config, AppArgs(), allow_private_networks=True)


@pytest.mark.parametrize(
    ("audio", "hosts"),
    [
        (str(AUDIO / "jfk.mp3"), ["minio:80"]),
        ("http://NAS.local/a.mp3", ["minio:80", "nas.local:80"]),
        ("https://[fd00::5]:8443/a.mp3", ["minio:80", "[fd00::5]:8443"]),
    ],
)
def test_an_application_of_the_commands_own_may_fetch_from_the_host_it_is_given(
    config: "ServeDeploySchema",
    started: list[AppArgs],
    audio: str,
    hosts: list[str],
) -> None:
    configured = AppArgs(allow_hosts=["minio:80"])
    with pytest.raises(StartError):
        commands.transcribe(config, configured, audio, "{}", io.StringIO())
    [args] = started
    assert args.allow_hosts == hosts
    assert not args.allow_private_networks


def test_a_url_that_cannot_be_fetched_is_told_before_anything_starts(
    config: "ServeDeploySchema",
) -> None:
    told = refusal(config, "ftp://example.com/a.mp3", "{}", io.StringIO())
    assert told.startswith("Audio download failed: only http and https")
