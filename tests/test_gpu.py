from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from deployments import catalog, gpu
from deployments.config import AppArgs
from deployments.contract.errors import DeviceError
from deployments.replica import loading
from tests.support.nvml import install_driver, install_torch

OFFICIAL = list(catalog.MODELS)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks Ray for anything must say what Ray answers."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this would start a Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "remote", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def shares(**args: Any) -> dict[str, float]:
    return gpu.gpu_shares(AppArgs.model_validate(args))


def test_a_machine_without_gpu_gives_no_shares() -> None:
    assert shares() == dict.fromkeys(OFFICIAL, 0.0)


def test_a_cluster_without_gpu_gives_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert shares(gpu_memory_gb=24) == dict.fromkeys(OFFICIAL, 0.0)


def test_a_gpu_of_the_cluster_is_found_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    assert shares(gpu_memory_gb=24)["medium"] == pytest.approx(10 / 24, abs=1e-4)


def test_a_gpu_is_left_alone_where_the_configuration_says_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert shares(device="cpu", gpu_memory_gb=24) == dict.fromkeys(OFFICIAL, 0.0)
    share = {"models": [{"name": "base", "gpu_share": 0.5}], "device": "cpu"}
    assert shares(**share) == {"base": 0.0}


@pytest.mark.parametrize("card_gb", [8, 24, 80])
def test_a_share_is_the_models_need_over_the_cards_memory(card_gb: float) -> None:
    assert shares(device="cuda", gpu_memory_gb=card_gb) == pytest.approx(
        {
            name: min(1.0, model.vram_gb / card_gb)
            for name, model in catalog.MODELS.items()
        },
        abs=6e-5,
    )


def test_a_model_larger_than_the_card_asks_for_the_whole_card() -> None:
    on_8_gb = shares(device="cuda", gpu_memory_gb=8)
    assert on_8_gb["large-v3"] == 1.0
    assert on_8_gb["turbo"] == 0.75


def test_every_share_is_one_that_ray_can_count() -> None:
    # Ray refuses finer ones than a ten-thousandth.
    for card_gb in (7.9, 23.6, 141.0, 1e6):
        for share in shares(device="cuda", gpu_memory_gb=card_gb).values():
            assert 0.0001 <= share <= 1
            assert share == round(share, 4)


def test_a_configured_share_counts_whatever_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "card_memory_gb", lambda: None)
    args = {
        "models": [{"name": "base", "gpu_share": 0.25}, {"name": "tiny"}],
        "device": "cuda",
    }
    assert shares(**args) == {"base": 0.25, "tiny": 1.0}
    assert shares(**args, gpu_memory_gb=100) == {"base": 0.25, "tiny": 0.02}


def test_weights_of_unknown_shape_ask_for_a_whole_card() -> None:
    mine = {"checkpoint": "/mine.pt"}
    models = [
        {"name": "base"},
        mine | {"name": "mine"},
        mine | {"name": "ours", "base_model": "medium"},
    ]
    assert shares(device="cuda", gpu_memory_gb=20, models=models) == {
        "base": 0.125,
        "mine": 1.0,
        "ours": 0.5,
    }


class Task:
    """What `ray.remote` makes of a function, without Ray."""

    def remote(self) -> "Task":
        return self


def test_the_card_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", lambda *_, **__: 25_000_000_000)
    assert shares(device="cuda", models=[{"name": "base"}]) == {"base": 0.1}


def test_the_driver_is_asked_before_pytorch_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", memory_bytes=24_000_000_000)
    install_torch(monkeypatch, "13.0")
    assert gpu.card_memory() == 24_000_000_000


@pytest.mark.parametrize("cards", [(), ("NVIDIA L4", "NVIDIA A40")])
def test_pytorch_is_asked_where_the_driver_cannot_know_which_card_is_meant(
    monkeypatch: pytest.MonkeyPatch, cards: tuple[str, ...]
) -> None:
    install_driver(monkeypatch, *cards)
    install_torch(monkeypatch, "13.0")
    monkeypatch.setattr(loading, "card_memory", lambda: 8_000_000_000)
    assert gpu.card_memory() == 8_000_000_000


def test_an_application_is_not_built_for_a_gpu_that_pytorch_cannot_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_driver(monkeypatch, "NVIDIA L4", version="570.86.15", cuda=12080)
    install_torch(monkeypatch, "13.0")

    def ask(*_: Any, **__: Any) -> None:
        try:
            gpu.card_memory()
        except DeviceError as error:
            raise RayTaskError("card_memory", "a traceback", error) from None

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", ask)
    with pytest.raises(DeviceError) as caught:
        shares(device="cuda")
    assert str(caught.value) == (
        "the NVIDIA driver 570.86.15 (CUDA 12.8) is too old for this build of PyTorch, which"
        " needs CUDA 13.0, so driver 580 or newer"
    )
    # A cluster's configuration states the memory, and each replica looks at its own machine.
    assert shares(device="cuda", gpu_memory_gb=24)["base"] > 0


@pytest.mark.parametrize("error", [ray.exceptions.GetTimeoutError(), OSError("driver")])
def test_a_card_of_unknown_memory_is_not_shared(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", fail)
    assert shares(device="cuda") == dict.fromkeys(OFFICIAL, 1.0)
