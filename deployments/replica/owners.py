"""Ends the work on a request whose Router has died."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import ActorDiedError, RayError

logger = logging.getLogger(__name__)

_ASK_EVERY_S = 1.0


class OwnerWatch:
    """Looks after the owners of a replica's requests.

    A caller who leaves cancels its call. A process that is killed cancels nothing, and Ray goes on
    with the calls that it has made. So a replica checks that each owner of a request is alive.
    """

    def __init__(self) -> None:
        self._work: dict[Any, set[asyncio.Future[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def watching(self, owner: Any, work: asyncio.Future[Any]) -> Iterator[None]:
        """Cancel the work if its owner dies within the block.

        owner: handle of an actor
        """
        if owner not in self._work:
            self._work[owner] = set()
            task = asyncio.ensure_future(self._watch(owner))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        works = self._work[owner]
        works.add(work)
        try:
            yield
        finally:
            works.discard(work)

    async def _watch(self, owner: Any) -> None:
        works = self._work[owner]
        try:
            while works:
                try:
                    await owner.__ray_ready__.remote()
                except ActorDiedError:
                    logger.warning("event=router_died cancelled=%d", len(works))
                    for work in works:
                        work.cancel()
                    return
                except RayError:
                    # Not known to be dead: perhaps the network has failed for a moment.
                    pass
                await asyncio.sleep(_ASK_EVERY_S)
        finally:
            # The owner's next request starts a watch anew.
            del self._work[owner]
