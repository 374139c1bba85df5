"""The end of a worker's work: the Router finishes its requests, within `drain_timeout_s`."""

import asyncio
import logging
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.drain import drain
from deployments.router.in_flight import DrainState

logger = logging.getLogger(__name__)


async def drain_router(router: DeploymentHandle[Any]) -> None:
    """Refuse new HTTP requests, and return when none is in work.

    After `drain_timeout_s` the Router ends what is still in work with an error, jobs as well.
    """
    logger.info("event=draining")
    try:
        await asyncio.to_thread(drain, router, _log)
    except (RayError, RayServeException, TimeoutError) as error:
        # The router has died, and its requests with it.
        logger.warning("event=drain_failed error=%s", type(error).__name__)


def _log(state: DrainState) -> None:
    logger.info("event=draining in_work=%d left_s=%.0f", state.in_work, state.left_s)
