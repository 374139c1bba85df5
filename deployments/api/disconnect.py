"""Cancels the work on a request whose client has disconnected."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from deployments.contract.errors import RequestCancelledError

_Result = TypeVar("_Result")


async def cancel_on_disconnect(
    receive: Receive, work: Coroutine[Any, Any, _Result]
) -> _Result:
    """What the work gives; it is cancelled if the caller leaves.

    Serve cancels the request of a caller who closes the connection, but not where its proxy's
    process has died: the Router learns of that only if it asks for the connection's next message.

    receive: of the request, whose body has been read

    Raises RequestCancelledError if the caller leaves, and what the work raises.
    """
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestCancelledError("The caller left")
        return working.result()
    finally:
        disconnected.cancel()
        working.cancel()
        # The work has given back what it held before this call returns.
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Returns when the caller has left."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:  # noqa: BLE001 - Ray's error that the proxy's process is dead
        return
