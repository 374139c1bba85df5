"""A worker of a load-balancing endpoint: it takes no jobs, RunPod sends it the HTTP requests."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.runpod.draining import drain_router
from deployments.runpod.signals import stop_signals
from deployments.runpod.watch import ServiceWatch


def serve_http(router: DeploymentHandle[Any], on_stop: Callable[[], None]) -> bool:
    """Serve until SIGTERM, or until the service dies; gives whether it is still alive.

    on_stop: called at SIGTERM. Then the requests in work are finished.
    """
    return asyncio.run(_serve_http(router, on_stop))


async def _serve_http(
    router: DeploymentHandle[Any], on_stop: Callable[[], None]
) -> bool:
    service = ServiceWatch(router)
    stopping = asyncio.Event()
    death = asyncio.ensure_future(service.death())
    stopped = asyncio.ensure_future(_stopped(router, stopping, on_stop))
    with stop_signals(stopping.set):
        await asyncio.wait({death, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for waiting in (death, stopped):
        waiting.cancel()
    return not service.died


async def _stopped(
    router: DeploymentHandle[Any], stopping: asyncio.Event, on_stop: Callable[[], None]
) -> None:
    await stopping.wait()
    on_stop()
    await drain_router(router)
