"""Watches Ray and the router. The service is dead where it cannot recover by itself."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import psutil
from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

# Ray's processes below this one. No public call of Ray says that they have died.
_RAY_PROCESSES = ("gcs_server", "raylet")


class ServiceWatch:
    """Watches the Ray that this process has started, and the application's router.

    interval_s: seconds between two looks
    router_patience_s: how long the router may be silent. Serve replaces a router that has died, and
        the machine may be busy.
    """

    def __init__(
        self,
        router: DeploymentHandle[Any],
        interval_s: float = 1.0,
        router_patience_s: float = 60.0,
    ) -> None:
        self._router = router
        self._interval_s = interval_s
        self._router_patience_s = router_patience_s
        self._processes = [
            (name, process)
            for process in psutil.Process().children()
            if (name := process.name()) in _RAY_PROCESSES
        ]
        self.died = False

    async def death(self) -> None:
        """Returns when the service is dead."""
        answered = time.monotonic()
        while not self.died:
            await asyncio.sleep(self._interval_s)
            ended = [name for name, process in self._processes if not _runs(process)]
            if ended:
                self._die(f"{ended[0]}_ended")
            elif await self._router_answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > self._router_patience_s:
                self._die("router_silent")

    async def _router_answers(self) -> bool:
        # Whatever the failure is, the next call may succeed.
        with suppress(Exception):
            async with asyncio.timeout(self._router_patience_s / 4):
                await self._router.health.remote()
                return True
        return False

    def _die(self, reason: str) -> None:
        logger.error("event=service_died reason=%s", reason)
        self.died = True


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
