"""The command line, `python -m deployments.checkpoints`."""

from pathlib import Path

import pytest

from deployments import catalog
from deployments.checkpoints.__main__ import main
from tests.support.checkpoint_server import CheckpointServer, put


def test_it_prints_a_line_for_each_model_and_nothing_else(
    cache: Path, server: CheckpointServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "base", "large-v3-turbo", "turbo", "medium"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"base {cache / 'base.pt'}",
        f"turbo {cache / 'large-v3-turbo.pt'}",
        f"medium {cache / 'medium.pt'}",
    ]


def test_an_unknown_name_is_refused_before_anything_is_fetched(
    server: CheckpointServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        main(["fetch", "base", "huge"])
    assert info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unknown model: huge" in captured.err
    for name in (*catalog.MODELS, *catalog.ALIASES):
        assert name in captured.err
    assert server.requests == []


def test_one_failure_does_not_keep_the_others_back(
    cache: Path, server: CheckpointServer, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache / "base.pt", b"corrupt")
    assert main(["fetch", "base", "medium"]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"medium {cache / 'medium.pt'}\n"
    assert "base: base.pt is corrupt" in captured.err


@pytest.mark.parametrize("arguments", [[], ["fetch"], ["remove", "base"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == 2
