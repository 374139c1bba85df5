"""Notices that Serve removes a model's deployment while requests wait for one of its replicas.

Serve does not fail a call that waits for a replica of a deployment that is being removed, so the
caller would wait as for a model that starts. It happens where an application is deleted while its
Router still works, and where a model is taken out of an application that is deployed again.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from deployments.contract.errors import ServiceUnavailableError

logger = logging.getLogger(__name__)

# Serve's controller needs a third of a second to tell its status, so only calls that have waited
# for this long have it asked.
_LOOK_EVERY_S = 5.0


class Removal:
    """Whether a deployment of this replica's application is removed, for those who wait for it."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._removed = False
        self._looked_at = -math.inf
        self._looking = asyncio.Lock()

    async def unless_removed(self, answer: Awaitable[Any]) -> Any:
        """The answer. Raises ServiceUnavailableError if the deployment is removed before."""
        answering = asyncio.ensure_future(answer)
        removed = asyncio.ensure_future(self._until_removed())
        try:
            await asyncio.wait(
                {answering, removed}, return_when=asyncio.FIRST_COMPLETED
            )
            if not answering.done():
                error = removed.exception()
                if error is None:
                    raise ServiceUnavailableError(
                        "The service stops, or serves this model no longer; send the request again"
                    )
                logger.warning("event=removal_unknown error=%s", type(error).__name__)
            return await answering
        finally:
            answering.cancel()
            removed.cancel()

    async def _until_removed(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            # All who wait share a look.
            async with self._looking:
                if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
                    self._removed = await asyncio.to_thread(
                        _is_removed, self._deployment
                    )
                    self._looked_at = time.monotonic()
            if self._removed:
                return


def _is_removed(deployment: str) -> bool:
    """Whether Serve says so. What it does not know, or not yet, is not removed."""
    try:
        name = serve.get_replica_context().app_name
        application = serve.status().applications.get(name)
    except (RayServeException, RayError):
        # There is no controller, or it has died and is replaced.
        return False
    if application is None:
        # Serve lists an application until its last replica has ended, this one included, but lists
        # none while its controller is replaced.
        return False
    if application.status == ApplicationStatus.DELETING:
        return True
    # Serve lists no deployments while it builds a changed application, nor after a build that
    # failed. The replicas of before go on meanwhile.
    return bool(application.deployments) and deployment not in application.deployments
