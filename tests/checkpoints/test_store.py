"""Weights that are on this machine: where they are found, and whether they are OpenAI's."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from deployments import checkpoints
from deployments.contract.errors import CheckpointError
from tests.support.checkpoint_server import CONTENT, put, says_where


class TestFind:
    def test_nothing_is_found_on_an_empty_machine(self, home: Path) -> None:
        assert checkpoints.find("base") is None

    def test_an_unknown_name_is_not_found(self, cache: Path) -> None:
        put(cache / "huge.pt")
        assert checkpoints.find("huge") is None

    def test_the_folders_are_searched_in_order(
        self, home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHISPER_CHECKPOINT_DIR", str(home / "mine"))
        in_order = [
            home / "mine" / "base.pt",
            home / "runpod-volume" / "whisper" / "base.pt",
            cache / "base.pt",
        ]
        for path in reversed(in_order):
            put(path)
            assert checkpoints.find("base") == path

    @pytest.mark.parametrize(
        ("name", "filename"),
        [
            ("turbo", "large-v3-turbo.pt"),
            ("large-v3-turbo", "large-v3-turbo.pt"),
            ("large", "large-v3.pt"),
            ("large-v3", "large-v3.pt"),
        ],
    )
    def test_an_alias_finds_the_official_file_name(
        self, cache: Path, name: str, filename: str
    ) -> None:
        path = put(cache / filename)
        assert checkpoints.find(name) == path

    def test_a_models_own_checkpoint_is_the_only_place(
        self, home: Path, cache: Path
    ) -> None:
        put(cache / "base.pt")
        assert checkpoints.find("base", str(home / "tuned.pt")) is None
        tuned = put(home / "tuned.pt", b"tuned")
        assert checkpoints.find("base", str(tuned)) == tuned

    def test_without_a_cache_variable_whispers_default_folder_is_searched(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(home))
        path = put(home / ".cache" / "whisper" / "base.pt")
        assert checkpoints.find("base") == path

    def test_a_folder_of_the_right_name_is_no_checkpoint(self, cache: Path) -> None:
        (cache / "base.pt").mkdir(parents=True)
        assert checkpoints.find("base") is None


class TestVerify:
    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the files that are hashed from here on."""
        names: list[str] = []
        original = hashlib.file_digest

        def counting(file: Any, digest: str) -> Any:
            names.append(Path(file.name).name)
            return original(file, digest)

        monkeypatch.setattr(hashlib, "file_digest", counting)
        return names

    def test_only_official_models_can_be_verified(self, home: Path) -> None:
        with pytest.raises(CheckpointError, match="not an official model"):
            checkpoints.verify("mine", put(home / "mine.pt"))

    def test_a_corrupt_file_is_refused_each_time_and_left_in_place(
        self, cache: Path
    ) -> None:
        path = put(cache / "base.pt", CONTENT[:-1])
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"base\.pt is corrupt") as info:
                checkpoints.verify("base", path)
        assert not says_where(str(info.value))
        assert path.read_bytes() == CONTENT[:-1]

    def test_a_file_that_cannot_be_read_is_named_without_its_folder(
        self, home: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=r"base\.pt cannot be read") as info:
            checkpoints.verify("base", home / "base.pt")
        assert not says_where(str(info.value))

    def test_a_file_that_has_passed_is_not_read_again(
        self, cache: Path, reads: list[str]
    ) -> None:
        path = put(cache / "base.pt")
        for _ in range(3):
            checkpoints.verify("base", path)
        assert reads == ["base.pt"]

    @pytest.mark.parametrize("change", ["in place", "by another file"])
    def test_a_file_that_has_changed_since_is_read_again(
        self, cache: Path, change: str
    ) -> None:
        path = put(cache / "base.pt")
        checkpoints.verify("base", path)
        stat = path.stat()
        damaged = CONTENT[:-1] + b"?"
        if change == "in place":
            path.write_bytes(damaged)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        else:
            other = put(cache / "other", damaged)
            os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            other.replace(path)
        with pytest.raises(CheckpointError, match="corrupt"):
            checkpoints.verify("base", path)

    def test_where_the_cache_cannot_be_written_every_start_hashes(
        self, home: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(put(home / "file") / "cache"))
        path = put(home / "mine" / "base.pt")
        for _ in range(2):
            checkpoints.verify("base", path)
        assert len(reads) == 2
