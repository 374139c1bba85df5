import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import whisper
from whisper import timing
from whisper.model import ModelDimensions, Whisper

from deployments.catalog import MODELS
from deployments.contract.errors import CheckpointError, DeviceError
from deployments.cpus import available_cpus
from deployments.engine import Engine
from deployments.engine.upstream.timing import compile_dtw, dtw
from deployments.replica.loading import (
    card_memory,
    has_code_for,
    load_model,
    warm_up,
)
from tests.support.engine.tiny_whisper import recording, tiny_whisper

# Narrow, but with the decoder layers and heads of "tiny", which is what its alignment heads fit.
DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=12,
    n_audio_head=6,
    n_audio_layer=1,
    n_vocab=51865,
    n_text_ctx=448,
    n_text_state=12,
    n_text_head=6,
    n_text_layer=4,
)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def save(path: Path, **dimensions: Any) -> Whisper:
    """A checkpoint of random weights in OpenAI's layout."""
    model = Whisper(replace(DIMENSIONS, **dimensions))
    torch.nn.init.normal_(model.decoder.positional_embedding)
    checkpoint = {"dims": asdict(model.dims), "model_state_dict": model.state_dict()}
    torch.save(checkpoint, path)
    return model


def failure(path: Path, official: str | None = None) -> str:
    """What the error says; never which folder the file is in."""
    with pytest.raises(CheckpointError) as caught:
        load_model(path, MODELS[official] if official else None)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_in_openais_layout_is_loaded(tmp_path: Path) -> None:
    saved = save(tmp_path / "mine.pt")
    loaded = load_model(tmp_path / "mine.pt", None)
    assert loaded.dims == saved.dims
    assert not loaded.training
    assert loaded.device == torch.device("cpu")
    weights = dict(loaded.named_parameters())
    for name, weight in saved.named_parameters():
        assert torch.equal(weights[name], weight)


def test_an_official_model_gets_its_alignment_heads(tmp_path: Path) -> None:
    save(tmp_path / "tiny.pt")
    loaded = load_model(tmp_path / "tiny.pt", MODELS["tiny"])
    expected = Whisper(DIMENSIONS)
    expected.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny"])
    heads = loaded.alignment_heads.to_dense()
    assert torch.equal(heads, expected.alignment_heads.to_dense())
    unknown = load_model(tmp_path / "tiny.pt", None)
    assert not torch.equal(heads, unknown.alignment_heads.to_dense())


def test_weights_of_unknown_origin_keep_upstreams_default_heads(tmp_path: Path) -> None:
    save(tmp_path / "mine.pt")
    heads = load_model(tmp_path / "mine.pt", None).alignment_heads.to_dense()
    assert heads.tolist() == [[False] * 6] * 2 + [[True] * 6] * 2


def test_a_model_on_a_cpu_uses_every_core_that_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "mine.pt")
    # What Ray leaves an actor that reserves no CPU.
    torch.set_num_threads(1)
    load_model(tmp_path / "mine.pt", None)
    assert torch.get_num_threads() == available_cpus()
    monkeypatch.setenv("WHISPER_CPU_THREADS", "3")
    load_model(tmp_path / "mine.pt", None)
    assert torch.get_num_threads() == 3


def test_a_file_that_is_no_checkpoint_is_told_by_its_name(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    save(whole)
    broken = {
        "empty.pt": b"",
        "text.pt": b"<html>404 Not Found</html>",
        "zeros.pt": bytes(100_000),
        "half.pt": whole.read_bytes()[: whole.stat().st_size // 2],
        "almost.pt": whole.read_bytes()[:-1000],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        assert failure(tmp_path / name).startswith(
            f"'{name}' is not a Whisper checkpoint ("
        )


def test_a_missing_file_or_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert "'gone.pt' is not a Whisper checkpoint" in failure(tmp_path / "gone.pt")
    (tmp_path / "folder").mkdir()
    assert "'folder' is not a Whisper checkpoint" in failure(tmp_path / "folder")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"dims": asdict(DIMENSIONS)},
        {"dims": asdict(DIMENSIONS), "model_state_dict": {}},
        {"dims": {"n_mels": 80}, "model_state_dict": {}},
    ],
    ids=["nothing", "a list", "no weights", "empty weights", "half the dimensions"],
)
def test_a_torch_file_of_another_kind_is_no_checkpoint(
    tmp_path: Path, content: Any
) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "'other.pt' is not a Whisper checkpoint" in failure(tmp_path / "other.pt")


class Code:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_code_inside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(Code(tmp_path / "made"), tmp_path / "code.pt")
    assert "'code.pt' is not a Whisper checkpoint" in failure(tmp_path / "code.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("official", ["base", "tiny.en", "turbo"])
def test_weights_of_another_shape_than_their_name_says_are_refused(
    tmp_path: Path, official: str
) -> None:
    save(tmp_path / "tiny.pt")
    assert failure(tmp_path / "tiny.pt", official) == (
        f"the weights in 'tiny.pt' are not of the shape of model '{official}'"
    )


def test_a_model_that_does_not_fit_the_memory_is_no_corrupt_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(whisper, "load_model", fail)
    with pytest.raises(MemoryError):
        load_model(tmp_path / "tiny.pt", None)


@pytest.mark.parametrize("n_vocab", [51864, 51865, 51866])
def test_warming_up_transcribes_once_with_any_vocabulary(n_vocab: int) -> None:
    model = Whisper(replace(DIMENSIONS, n_vocab=n_vocab)).eval()
    torch.nn.init.normal_(model.decoder.positional_embedding)
    with Engine(model) as engine:
        warm_up(engine)
        assert engine.stats().windows_done == 1


def test_after_compiling_word_timestamps_compile_nothing_more() -> None:
    compile_dtw()
    compiled = list(dtw.signatures)
    assert len(compiled) == 1
    with Engine(tiny_whisper()) as engine:
        result = engine.transcribe(
            recording(1),
            language="en",
            temperature=0.0,
            sample_len=4,
            word_timestamps=True,
        )
    assert result["segments"][0]["words"]
    assert dtw.signatures == compiled


def test_what_is_compiled_may_run_in_several_threads() -> None:
    # numba's parallel code may not.
    assert timing.dtw_cpu.targetoptions.get("parallel")
    assert not dtw.targetoptions.get("parallel")


def test_weights_are_not_drawn_at_random_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "mine.pt")

    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("weights were initialised")

    monkeypatch.setattr(torch.Tensor, "uniform_", drawn)
    monkeypatch.setattr(torch.Tensor, "normal_", drawn)
    load_model(tmp_path / "mine.pt", None)


# What PyTorch raises at its first CUDA call (c10/cuda/CUDAFunctions.cpp, torch/cuda/__init__.py).
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU"
    " driver by downloading and installing a new version from the URL:"
    " http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to"
    " install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and"
    " installed a driver from http://www.nvidia.com/Download/index.aspx"
)
NOT_READY = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling"
    " NumCudaDevices() that might have already set an error? Error 802: system not yet initialized"
)
BUSY = (
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\n"
    "CUDA kernel errors might be asynchronously reported at some other API call\n"
)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            RuntimeError(TOO_OLD),
            "The NVIDIA driver on your system is too old (found version 12080)",
        ),
        (RuntimeError(NO_DRIVER), "Found no NVIDIA driver on your system"),
        (RuntimeError(NOT_READY), NOT_READY),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (torch.AcceleratorError(BUSY), BUSY.partition("\n")[0]),
    ],
)
def test_what_cuda_says_at_its_first_call_is_told(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str
) -> None:
    def fail(_: int) -> None:
        raise raised

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    with pytest.raises(DeviceError) as caught:
        card_memory()
    assert str(caught.value) == (
        f"PyTorch {torch.__version__}, built for CUDA 13.0, cannot use the GPU: {told}"
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch has CUDA here")
def test_a_pytorch_without_cuda_is_told_by_cudas_first_call() -> None:
    with pytest.raises(DeviceError, match="Torch not compiled with CUDA enabled$"):
        card_memory()


def test_memory_that_is_short_at_the_first_call_is_no_unusable_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    with pytest.raises(torch.OutOfMemoryError):
        card_memory()


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), CUDA_13, True),
        ((7, 0), CUDA_13, False),
        ((7, 0), CUDA_12_6, True),
        ((12, 0), CUDA_13, True),
        ((12, 1), CUDA_13, True),
        ((13, 0), CUDA_13, True),
        ((12, 0), CUDA_12_6, False),
        ((9, 0), ["sm_90a"], False),
        ((9, 0), [], True),
    ],
)
def test_a_card_runs_code_of_its_own_major_version_and_intermediate_code(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert has_code_for(capability, architectures) is runs


def test_a_card_for_which_the_build_has_no_code_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = SimpleNamespace(
        major=12, minor=0, name="NVIDIA GeForce RTX 5090", total_memory=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_12_6)
    with pytest.raises(DeviceError) as caught:
        card_memory()
    assert str(caught.value) == (
        f"this build of PyTorch ({torch.__version__}) has no code for the card"
        " NVIDIA GeForce RTX 5090 (compute capability 12.0; it has"
        " sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90)"
    )
