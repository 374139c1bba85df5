"""A worker of a load-balancing endpoint: it takes no jobs, RunPod sends it the HTTP requests."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.drain import drain
from deployments.router.in_flight import DrainState
from deployments.runpod.signals import stop_signals
from deployments.runpod.watch import ServiceWatch

logger = logging.getLogger(__name__)


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
    logger.info("event=draining")
    try:
        await asyncio.to_thread(drain, router, _log)
    except (RayError, RayServeException, TimeoutError) as error:
        # The router has died, and its requests with it.
        logger.warning("event=drain_failed error=%s", type(error).__name__)


def _log(state: DrainState) -> None:
    logger.info("event=draining in_work=%d left_s=%.0f", state.in_work, state.left_s)
