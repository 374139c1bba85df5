import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.local.console import progress, readable_json, say


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


def test_the_tokens_of_a_segment_are_one_line() -> None:
    answer = {"segments": [{"id": 0, "tokens": [50364, 400, 370], "text": "É so"}]}
    assert readable_json(answer) == (
        '{\n  "segments": [\n    {\n      "id": 0,\n      "tokens": [50364, 400, 370],\n'
        '      "text": "É so"\n    }\n  ]\n}'
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_printed_is_the_same_json(value: Any) -> None:
    assert json.loads(readable_json(value)) == value
