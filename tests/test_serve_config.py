"""What the commands make of `serve_config.yaml`: what they obey, and how they refuse the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import AppArgs
from deployments.serve_config import (
    CONFIG,
    ConfigError,
    base_url,
    deployment_options,
    read_args,
    read_config,
    require_http,
    server_url,
)

Change = Callable[[dict[str, Any], dict[str, Any]], object]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the shipped configuration with a change to it or to its application."""

    def write(change: Change) -> Path:
        content = yaml.safe_load(CONFIG.read_text())
        change(content, content["applications"][0])
        path = tmp_path / "serve_config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_the_configuration_and_its_arguments_are_read() -> None:
    config, args = read_config()
    assert [application.name for application in config.applications] == ["whisper"]
    assert args == AppArgs()
    assert read_args() == args
    require_http(config)


def test_an_application_without_arguments_has_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "applications: [{name: whisper, import_path: 'deployments.app:build_app'}]"
    )
    assert read_args(path) == read_config(path)[1] == AppArgs()


def test_the_applications_name_and_prefix_are_its_own(
    write: Callable[[Change], Path],
) -> None:
    path = write(lambda _, app: app.update(name="speech", route_prefix="/to/text"))
    config, _ = read_config(path)
    assert config.applications[0].name == "speech"
    assert base_url(config, 81) == "http://127.0.0.1:81/to/text"


def test_a_url_at_the_root_ends_without_a_slash() -> None:
    config, _ = read_config()
    assert base_url(config, 8000) == "http://127.0.0.1:8000"
    config.http_options.host = "::1"
    assert base_url(config, 8000) == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::2", "http://[fd00::2]:8000"),
    ],
)
def test_the_url_of_a_host_can_be_called(host: str, url: str) -> None:
    assert server_url(host, 8000) == url


def test_options_of_deployments_are_read(write: Callable[[Change], Path]) -> None:
    router = {
        "name": "Router",
        "ray_actor_options": {"num_cpus": 2},
        "user_config": {"max_audio_s": 28800},
    }
    base = {"name": "whisper-base", "max_ongoing_requests": 7}
    config, _ = read_config(
        write(lambda _, app: app.update(deployments=[router, base]))
    )
    assert deployment_options(config) == {
        "Router": {
            "ray_actor_options": {"num_cpus": 2},
            "user_config": {"max_audio_s": 28800},
        },
        "whisper-base": {"max_ongoing_requests": 7},
    }


def test_without_http_the_local_commands_have_nothing_to_offer(
    write: Callable[[Change], Path],
) -> None:
    config, _ = read_config(write(lambda top, _: top.update(proxy_location="Disabled")))
    with pytest.raises(ConfigError, match=r"proxy_location: Disabled .* set HeadOnly"):
        require_http(config)
    config, _ = read_config(write(lambda _, app: app.update(route_prefix=None)))
    with pytest.raises(ConfigError, match=r"route_prefix: null .* set a path"):
        require_http(config)


SECOND = {"name": "b", "route_prefix": "/b", "import_path": "b:app"}
NOT_OBEYED: list[tuple[Change, str]] = [
    (
        lambda top, _: top["applications"].append(SECOND),
        "applications lists 2, and this command starts one: leave one,",
    ),
    (lambda top, _: top["applications"].clear(), "applications must be a list"),
    (
        lambda _, app: app.update(import_path="other:app"),
        "import_path must be deployments.app:build_app",
    ),
    (
        lambda _, app: app.update(runtime_env={"env_vars": {"A": "b"}}),
        "runtime_env is not obeyed by this command: set its variables in the shell",
    ),
    (
        lambda top, _: top.update(grpc_options={"port": 9000}),
        "grpc_options is not obeyed by this command: the service speaks no gRPC",
    ),
    (lambda top, _: top.update(target_capacity=50), "target_capacity is not obeyed"),
    (
        lambda _, app: app.update(port=9000),
        "Port 9000 is set in the config for application `whisper`. Please remove it",
    ),
    (
        lambda _, app: app.update(deployments=[{"name": "whisper-bas"}]),
        "unknown key deployments: whisper-bas; do you mean whisper-base?",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "whisper-base", "num_replicas": 2}]
        ),
        "num_replicas of whisper-base would have no effect: set min_replicas and",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "Router", "rolling_update_percentage": 0.5}]
        ),
        "rolling_update_percentage of Router is not obeyed by this command",
    ),
]
WRONG: list[tuple[Change, str]] = [
    (
        lambda _, app: app["args"].update(max_audio=3),
        "unknown key args.max_audio; do you mean max_audio_s?",
    ),
    (
        lambda _, app: app["args"]["models"][2].update(gpu_share=2),
        "args.models[2].gpu_share should be less than or equal to 1, not 2",
    ),
    (
        lambda _, app: app["args"].update(default_model="huge"),
        "default_model 'huge' is not among the models",
    ),
    (
        lambda top, _: top.update(proxy_locations="HeadOnly"),
        "unknown key proxy_locations; do you mean proxy_location?",
    ),
    (
        lambda top, _: top["http_options"].update(prt=1),
        "unknown key http_options.prt; do you mean port?",
    ),
    (
        lambda top, _: top["http_options"].update(port="x"),
        "http_options.port should be a valid integer,",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "Router", "ray_actor_options": {"num_cpu": 1}}]
        ),
        "unknown key deployments[0].ray_actor_options.num_cpu; do you mean num_cpus?",
    ),
    (
        lambda _, app: app.update(route_prefix="speech"),
        "route_prefix must be / or a path such as /whisper, not 'speech'",
    ),
    (
        lambda top, _: top["http_options"].update(port=99999),
        "http_options.port must be 1 to 65535, not 99999",
    ),
    (
        lambda top, _: top["http_options"].update(port=0),
        "http_options.port must be 1 to 65535, not 0",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "Router", "user_config": {"max_audio": 3}}]
        ),
        "user_config of Router: max_audio: ",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "Router", "user_config": {"max_audio_s": -1}}]
        ),
        "user_config of Router: max_audio_s: Input should be greater than 0",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "Router", "user_config": {"device": "cpu"}}]
        ),
        "user_config of Router: 'device' can only be changed under args",
    ),
    (
        lambda _, app: app.update(
            deployments=[{"name": "whisper-base", "user_config": {"max_audio_s": 3}}]
        ),
        "user_config of whisper-base is not read: set the model's options under args",
    ),
    (lambda _, app: app.update(name=""), "Application names must be nonempty."),
]


@pytest.mark.parametrize(
    ("change", "text"),
    NOT_OBEYED + WRONG,
    ids=[text[:40] for _, text in NOT_OBEYED + WRONG],
)
def test_what_cannot_be_obeyed_is_refused_in_one_line(
    write: Callable[[Change], Path], change: Change, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(change))
    assert str(caught.value).startswith(f"serve_config.yaml: {text}")
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_every_broken_rule_of_the_arguments_is_told(
    write: Callable[[Change], Path],
) -> None:
    path = write(lambda _, app: app["args"].update(device="tpu", request_timeout_s=-1))
    for read in (read_args, read_config):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == (
            "serve_config.yaml: args.device should be 'auto', 'cuda' or 'cpu', not 'tpu';"
            " args.request_timeout_s should be greater than 0, not -1"
        )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a:\n\tb: 1", "line 2 is no YAML: found character '\\t'"),
        (b"just text", "must hold keys and values, among them applications"),
        (b"", "must hold keys and values, among them applications"),
        (b"\xff\xfe\x00", "is no"),
        (
            b"applications: {name: whisper}",
            "applications must be a list that holds one",
        ),
        (b"applications: [whisper]", "applications[0] must hold keys and values"),
    ],
)
def test_a_file_that_is_no_configuration_is_told(
    tmp_path: Path, content: bytes, text: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    for read in (read_args, read_config):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"mine.yaml: {text}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^none\.yaml: cannot be read: No such file"):
        read_args(tmp_path / "none.yaml")
