"""What is said of card, driver and build, on a stand-in for NVIDIA's library."""

from pathlib import Path

import pynvml
import pytest
import torch

from deployments.contract.errors import DeviceError
from deployments.replica import nvidia
from deployments.replica.nvidia import Driver
from tests.support.nvml import (
    GIB,
    break_driver,
    install_driver,
    install_torch,
    without_driver,
)


def test_the_build_is_the_one_that_an_import_would_find() -> None:
    build = nvidia.torch_build()
    assert (build.version, build.cuda) == (torch.__version__, torch.version.cuda)


def test_the_driver_names_cards_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(
        monkeypatch, "NVIDIA L4", "NVIDIA A40", version="570.86.15", cuda=12080
    )
    assert nvidia.driver() == Driver(
        ("NVIDIA L4", "NVIDIA A40"), 24 * GIB, "570.86.15", "12.8"
    )


@pytest.mark.parametrize(
    ("build", "version", "cuda", "reason"),
    [
        (
            "13.0",
            "570.86.15",
            12080,
            (
                "the NVIDIA driver 570.86.15 (CUDA 12.8) is too old for this build of PyTorch,"
                " which needs CUDA 13.0, so driver 580 or newer"
            ),
        ),
        (
            "12.6",
            "470.256.02",
            11040,
            (
                "the NVIDIA driver 470.256.02 (CUDA 11.4) is too old for this build of PyTorch,"
                " which needs CUDA 12.6, so driver 525 or newer"
            ),
        ),
        (
            "14.1",
            "595.10",
            13020,
            (
                "the NVIDIA driver 595.10 (CUDA 13.2) is too old for this build of PyTorch,"
                " which needs CUDA 14.1"
            ),
        ),
        (
            "13.0",
            "580.95.05",
            None,
            (
                "the NVIDIA driver 580.95.05 has no CUDA library here (in a container"
                " NVIDIA_DRIVER_CAPABILITIES has to name compute,utility)"
            ),
        ),
        (None, "580.95.05", 13000, "this build of PyTorch (2.13.0) has no CUDA"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_told_with_its_driver_and_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    build: str | None,
    version: str,
    cuda: int | None,
    reason: str,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", version=version, cuda=cuda)
    install_torch(monkeypatch, build)
    assert nvidia.problem() == reason


@pytest.mark.parametrize(
    ("build", "cuda"),
    [("13.0", 13000), ("13.2", 13000), ("12.6", 12000), ("12.6", 13010)],
)
def test_a_driver_runs_every_minor_version_of_its_own_and_of_older_versions(
    monkeypatch: pytest.MonkeyPatch, build: str, cuda: int
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", cuda=cuda)
    install_torch(monkeypatch, build)
    assert nvidia.problem() is None
    nvidia.check_this_machine("auto")
    nvidia.check_this_machine("cuda")


def test_a_machine_without_a_driver_is_no_problem_before_a_gpu_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_driver(monkeypatch)
    install_torch(monkeypatch, "13.0")
    assert nvidia.driver(devices=tmp_path) is None


def test_a_gpu_without_its_library_is_not_taken_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_driver(monkeypatch)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(DeviceError, match="NVIDIA_DRIVER_CAPABILITIES"):
        nvidia.driver(devices=tmp_path)


def test_a_driver_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    break_driver(monkeypatch, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    install_torch(monkeypatch, "13.0")
    assert "does not answer" in (nvidia.problem() or "")
    for device in ("auto", "cuda"):
        with pytest.raises(DeviceError, match="does not answer"):
            nvidia.check_this_machine(device)
    nvidia.check_this_machine("cpu")


def test_no_gpu_is_refused_only_where_the_configuration_insists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch)
    for device in ("auto", "cpu"):
        nvidia.check_this_machine(device)
    with pytest.raises(DeviceError, match="`device` is cuda, and this machine has no"):
        nvidia.check_this_machine("cuda")


def test_a_gpu_that_cannot_be_used_is_not_replaced_by_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", cuda=12080)
    install_torch(monkeypatch, "13.0")
    with pytest.raises(DeviceError, match="is too old"):
        nvidia.check_this_machine("auto")
    nvidia.check_this_machine("cpu")


def test_gpus_that_are_hidden_from_the_process_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", cuda=12080)
    install_torch(monkeypatch, "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    nvidia.check_this_machine("auto")


def test_a_gpu_that_is_wanted_and_hidden_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4")
    install_torch(monkeypatch, "13.0")
    nvidia.check_this_machine("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES is empty"):
        nvidia.check_this_machine("cuda")


def test_the_summary_is_one_line_of_keys_and_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_torch(monkeypatch, "13.0")
    install_driver(
        monkeypatch,
        "NVIDIA GeForce RTX 4090",
        version="570.86.15",
        cuda=12080,
        memory_bytes=25_757_220_864,
    )
    assert nvidia.summary() == (
        'cards=1 card="NVIDIA GeForce RTX 4090" memory_gb=25.8 driver=570.86.15 cuda=12.8'
        " torch=2.13.0 torch_cuda=13.0"
    )
    install_driver(monkeypatch, version="570.86.15", cuda=None)
    assert nvidia.summary() == (
        "cards=0 memory_gb=0.0 driver=570.86.15 cuda=none torch=2.13.0 torch_cuda=13.0"
    )
    break_driver(monkeypatch, pynvml.NVML_ERROR_UNKNOWN)
    assert nvidia.summary() == (
        'cards=unknown reason="the NVIDIA driver does not answer (Unknown Error)"'
        " torch=2.13.0 torch_cuda=13.0"
    )
