import pytest

from deployments.local.console import progress, say


def test_what_is_said_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("stopping")
    assert capsys.readouterr() == ("", "stopping\n")


def test_progress_is_said_at_the_start_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("transcribing"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "transcribing ..."
    assert lines[-1].startswith("transcribing: done in ")


def test_work_that_fails_is_not_said_to_be_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError), progress("transcribing"):
        raise ValueError
    assert "done" not in capsys.readouterr().err
