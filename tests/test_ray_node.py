"""What is settled before Ray is imported: its folder, its token, its environment. No Ray starts."""

import os
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deployments import ray_node
from deployments.ray_node import StartError, log_folder, prepare_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A user's environment without any of Ray's variables."""
    variables = {"HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr("tempfile.tempdir", None)
    return variables


def test_rays_token_lies_in_the_users_home_and_is_the_users_alone(
    tmp_path: Path,
) -> None:
    prepare_environment()
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    before = token.read_text()
    prepare_environment()
    assert token.read_text() == before


def test_a_home_that_takes_no_file_leaves_the_token_beside_rays_sessions(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # A file in the place of the folder, because root may write anywhere.
    (tmp_path / ".ray").write_text("")
    folder = _short_folder()
    environment["RAY_TMPDIR"] = str(folder)
    prepare_environment()
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert token == folder / "ray" / "auth_token"
    assert len(token.read_text()) == 64


def test_a_token_of_the_users_own_is_kept(environment: dict[str, str]) -> None:
    environment["RAY_AUTH_TOKEN"] = "own"
    prepare_environment()
    assert environment["RAY_AUTH_TOKEN"] == "own"
    assert "RAY_AUTH_TOKEN_PATH" not in environment


def test_a_variable_that_is_set_keeps_its_value(environment: dict[str, str]) -> None:
    environment["RAY_worker_niceness"] = "5"
    prepare_environment()
    assert environment["RAY_worker_niceness"] == "5"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_colour_codes(
    is_terminal: bool, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    prepare_environment()
    assert ("RAY_COLOR_PREFIX" in environment) is not is_terminal


def test_a_folder_whose_path_is_too_long_for_a_socket_is_not_taken(
    environment: dict[str, str], tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    environment["TMPDIR"] = str(long)
    prepare_environment()
    taken = environment["RAY_TMPDIR"]
    assert not taken.startswith(str(tmp_path))
    assert len(f"{taken}/ray/session_2026-11-26_16-22-05_909123_4194304") < 107 - 21
    assert environment["TMPDIR"] == str(long)


def test_a_folder_that_the_user_chose_and_ray_cannot_use_is_an_error(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["RAY_TMPDIR"] = str(tmp_path / ("x" * 120))
    with pytest.raises(
        StartError, match="^Ray cannot use .* set RAY_TMPDIR to a folder"
    ):
        prepare_environment()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_taken(environment: dict[str, str]) -> None:
    folder = _short_folder()
    (folder / "ray").mkdir()
    os.chown(folder / "ray", 4242, 4242)
    environment["TMPDIR"] = str(folder)
    prepare_environment()
    assert environment["RAY_TMPDIR"] != str(folder)


def test_no_folder_for_temporary_files_is_an_error(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(StartError, match="set TMPDIR to one"):
        prepare_environment()


def test_a_wrong_number_of_threads_is_told_before_anything_starts(
    environment: dict[str, str],
) -> None:
    environment["WHISPER_CPU_THREADS"] = "many"
    with pytest.raises(StartError, match="^WHISPER_CPU_THREADS must be"):
        prepare_environment()


def test_the_logs_lie_in_rays_folder(environment: dict[str, str]) -> None:
    environment["RAY_TMPDIR"] = "/somewhere"
    assert log_folder() == Path("/somewhere/ray/session_latest/logs")


def test_the_file_of_keys_is_found_from_any_folder(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment["API_KEYS_FILE"] = "keys"
    prepare_environment()
    assert environment["API_KEYS_FILE"] == str(tmp_path / "keys")


def _short_folder() -> Path:
    """A new folder whose path leaves room for a socket of Ray."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))


def test_the_longest_folder_leaves_room_for_rays_longest_socket() -> None:
    socket = "/session_2026-11-26_16-22-05_909123_4194304/sockets/plasma_store"
    assert ray_node._LONGEST_RAY_FOLDER + len(socket) <= 107


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, "127.0.0.1"),
        ({"no_proxy": "10.1.2.3,.corp"}, "10.1.2.3,.corp,127.0.0.1"),
        ({"no_grpc_proxy": "a.corp", "no_proxy": "b.corp"}, "a.corp,127.0.0.1"),
        ({"no_grpc_proxy": "127.0.0.1,a.corp"}, "127.0.0.1,a.corp"),
    ],
)
def test_rays_own_metrics_ask_no_proxy(
    environment: dict[str, str], given: dict[str, str], settled: str
) -> None:
    environment |= {"https_proxy": "http://proxy.corp:3128"} | given
    prepare_environment()
    assert environment["no_grpc_proxy"] == settled
    assert environment.get("no_proxy") == given.get("no_proxy")


@pytest.mark.parametrize("imported", [True, False])
def test_what_ray_reads_at_its_import_is_settled_only_before_that(
    imported: bool, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that a Ray starts would otherwise read what it has not read itself."""
    if imported:
        monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    else:
        monkeypatch.delitem(sys.modules, "ray", raising=False)
    prepare_environment()
    names = {"RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    assert names & environment.keys() == (set() if imported else names)
