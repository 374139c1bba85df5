"""What counts as the service's death, with a child process that is called as Ray's own is."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from deployments.runpod.watch import ServiceWatch

LIMIT_S = 60


class Router:
    """A handle that answers, or fails, as long as it is told to."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.asked = asyncio.Event()

    @property
    def health(self) -> "Router":
        return self

    async def remote(self) -> None:
        self.asked.set()
        if not self.answers:
            raise ConnectionError


@pytest.fixture(params=["gcs_server", "raylet"])
def of_ray(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / request.param)
    process = subprocess.Popen([program, str(LIMIT_S)])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def another_of_ray(
    of_ray: subprocess.Popen[bytes],
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(of_ray.args)
    yield process
    process.kill()
    process.wait()


async def test_the_service_is_dead_when_a_process_of_ray_has_ended(
    of_ray: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    router = Router(answers=True)
    service = ServiceWatch(cast(Any, router), interval_s=0.01)
    death = asyncio.ensure_future(service.death())
    await router.asked.wait()
    assert not service.died
    of_ray.kill()
    async with asyncio.timeout(LIMIT_S):
        await death
    assert service.died
    name = Path(cast(list[str], of_ray.args)[0]).name
    assert f"event=service_died reason={name}_ended" in caplog.text


async def test_a_process_counts_beside_another_of_the_same_name(
    of_ray: subprocess.Popen[bytes], another_of_ray: subprocess.Popen[bytes]
) -> None:
    for ended in (of_ray, another_of_ray):
        service = ServiceWatch(cast(Any, Router(answers=True)), interval_s=0.01)
        ended.kill()
        async with asyncio.timeout(LIMIT_S):
            await service.death()
        ended.wait()


async def test_a_router_that_is_silent_for_a_while_is_forgiven() -> None:
    router = Router(answers=False)
    service = ServiceWatch(
        cast(Any, router), interval_s=0.01, router_patience_s=LIMIT_S
    )
    death = asyncio.ensure_future(service.death())
    await router.asked.wait()
    router.answers = True
    router.asked.clear()
    await router.asked.wait()
    assert not service.died
    death.cancel()


async def test_the_service_is_dead_when_the_router_stays_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router = Router(answers=False)
    service = ServiceWatch(cast(Any, router), interval_s=0.01, router_patience_s=0.1)
    async with asyncio.timeout(LIMIT_S):
        await service.death()
    assert service.died
    assert "event=service_died reason=router_silent" in caplog.text
