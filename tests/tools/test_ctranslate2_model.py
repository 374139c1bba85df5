"""The conversion from CTranslate2's layout to OpenAI's, of a tiny random model."""

import contextlib
import struct
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.contract.errors import CheckpointError
from tests.support.ctranslate2_file import (
    DIGEST,
    DIMS,
    MODEL_BIN,
    STATE,
    VARIABLES,
    packed,
    string,
    variable,
)
from tools.ctranslate2_model import Array, convert, parse, state_digest

# Examples take microseconds, but a busy machine may stall one for longer than the default deadline.
ANY_SPEED = settings(deadline=None)


class TestParse:
    def test_what_was_written_is_read(self) -> None:
        variables = parse(MODEL_BIN)
        assert variables.keys() == VARIABLES.keys()
        for name, array in VARIABLES.items():
            assert variables[name].dtype == array.dtype
            np.testing.assert_array_equal(variables[name], array)

    @ANY_SPEED
    @given(st.integers(0, len(MODEL_BIN) - 1))
    def test_a_file_cut_anywhere_is_refused(self, length: int) -> None:
        with pytest.raises(CheckpointError, match="cannot be converted"):
            parse(MODEL_BIN[:length])

    def test_a_file_with_something_behind_its_end_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="does not end where it should"):
            parse(MODEL_BIN + b"\0")

    @ANY_SPEED
    @given(st.binary(max_size=200))
    def test_garbage_is_refused(self, data: bytes) -> None:
        with pytest.raises(CheckpointError):
            parse(data)

    @ANY_SPEED
    @given(st.binary(max_size=200))
    def test_garbage_behind_a_good_head_is_read_or_refused(self, data: bytes) -> None:
        head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<I", 3)
        read_or_refused(head + data)

    @ANY_SPEED
    @given(
        st.integers(0, len(MODEL_BIN) - 1),
        st.binary(min_size=1, max_size=8),
    )
    def test_a_damaged_file_is_read_or_refused(self, at: int, damage: bytes) -> None:
        read_or_refused(MODEL_BIN[:at] + damage + MODEL_BIN[at + len(damage) :])

    @ANY_SPEED
    @given(
        st.lists(st.integers(0, 2**32 - 1), max_size=255).map(tuple),
        st.integers(0, 255),
        st.binary(max_size=16),
    )
    def test_a_variable_of_any_shape_is_read_or_refused(
        self, shape: tuple[int, ...], kind: int, data: bytes
    ) -> None:
        read_or_refused(packed([variable("a", shape, kind, data)]))

    @pytest.mark.parametrize(
        "data",
        [
            packed([], spec="TransformerSpec"),
            packed([], version=5),
            packed([variable("a", (2,), 4, b"\0" * 6)]),
            packed([variable("a", (1,), 5, b"\0" * 2)]),
            packed([variable("a", (2**32 - 1,) * 8 + (0,), 0, b"")]),
            packed([variable("a", (1,) * 200, 1, b"\0")]),
            packed([variable("\xff", (1,), 1, b"\0")]),
        ],
        ids=["spec", "version", "size", "type", "huge", "rank", "name"],
    )
    def test_what_no_pinned_file_holds_is_refused(self, data: bytes) -> None:
        with pytest.raises(CheckpointError, match="cannot be converted"):
            parse(data)


class TestConvert:
    def test_every_tensor_is_back_in_its_place(self) -> None:
        checkpoint = convert(parse(MODEL_BIN))
        assert checkpoint["dims"] == vars(DIMS)
        state = checkpoint["model_state_dict"]
        assert state.keys() == STATE.keys()
        for name, array in STATE.items():
            assert state[name].dtype == np.float16
            np.testing.assert_array_equal(state[name], array)
        assert state_digest(state) == DIGEST

    def test_a_missing_variable_is_refused_or_changes_the_digest(self) -> None:
        for name in VARIABLES.keys() - {"decoder/pre_norm"}:
            rest = {other: array for other, array in VARIABLES.items() if other != name}
            assert refused_or_other_digest(rest), name

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
    def test_a_wrong_shape_is_refused_or_changes_the_digest(
        self, shape: tuple[int, ...]
    ) -> None:
        scalars = {name for name, array in VARIABLES.items() if array.ndim == 0}
        for name in VARIABLES.keys() - scalars:
            changed = VARIABLES | {name: np.ones(shape, "<f2")}
            assert refused_or_other_digest(changed), name

    def test_a_key_with_a_bias_is_refused(self) -> None:
        name = "decoder/layer_1/attention/linear_1/bias"
        biased = VARIABLES | {name: np.ones_like(VARIABLES[name])}
        with pytest.raises(CheckpointError, match="key projection has a bias"):
            convert(biased)


class TestDigest:
    def test_it_depends_on_values_and_names_and_not_on_order(self) -> None:
        backwards = dict(reversed(STATE.items()))
        assert state_digest(backwards) == DIGEST
        name, array = next(iter(STATE.items()))
        assert state_digest(STATE | {name: -array}) != DIGEST
        renamed = {f"{name}_": array for name, array in STATE.items()}
        assert state_digest(renamed) != DIGEST


def refused_or_other_digest(variables: Mapping[str, Array]) -> bool:
    try:
        state = convert(variables)["model_state_dict"]
    except CheckpointError:
        return True
    return state_digest(state) != DIGEST


def read_or_refused(data: bytes) -> None:
    """No other error than CheckpointError, whatever the file holds."""
    with contextlib.suppress(CheckpointError):
        convert(parse(data))
