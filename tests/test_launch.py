from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.config import APPLICATION, AppArgs
from deployments.launch import CONFIG, base_url, read_args, read_config


def test_the_configuration_and_its_arguments_are_read() -> None:
    config, args = read_config()
    assert [application.name for application in config.applications] == [APPLICATION]
    assert args == AppArgs()
    assert read_args() == args


def test_an_application_without_arguments_has_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "applications: [{name: whisper, import_path: 'deployments.app:build_app'}]"
    )
    assert read_args(path) == read_config(path)[1] == AppArgs()


def test_a_misspelt_argument_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.read_text().replace("max_audio_s", "max_audio"))
    for read in (read_args, read_config):
        with pytest.raises(ValidationError, match="max_audio\n"):
            read(path)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("fd00::2", "http://[fd00::2]:8000"),
    ],
)
def test_the_url_of_a_host_can_be_called(host: str, url: str) -> None:
    assert base_url(host, 8000) == url
