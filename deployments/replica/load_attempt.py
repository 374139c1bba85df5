"""One attempt at loading a model, which any number of requests wait for."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployments.engine import Engine


class LoadAttempt:
    """The thread that loads starts when this is made."""

    def __init__(self, load: Callable[[], "Engine"]) -> None:
        self.future: Future[Engine] = Future()
        threading.Thread(target=self._run, args=(load,), daemon=True).start()

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None

    @property
    def engine(self) -> "Engine | None":
        """None while the attempt goes on, and where it has failed."""
        done = self.future.done() and not self.failed
        return self.future.result() if done else None

    async def wait(self) -> "Engine":
        # Shielded, because a caller who leaves must not cancel the attempt for the others.
        return await asyncio.shield(asyncio.wrap_future(self.future))

    def _run(self, load: Callable[[], "Engine"]) -> None:
        try:
            self.future.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self.future.set_exception(error)
