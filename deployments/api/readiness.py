"""Whether requests should come here: `GET /ready` for orchestrators, `GET /ping` for RunPod."""

import asyncio
import math
import time

from fastapi import APIRouter, Response

from deployments.contract.answer import ErrorAnswer, Ready
from deployments.contract.errors import ServiceUnavailableError
from deployments.http_errors import contract_response
from deployments.router.router import Router

# To count replicas costs Serve's controller a third of a second, so probes share an answer.
_STILL_TRUE_S = 1.0


def routes(router: Router) -> APIRouter:
    readiness = _Readiness(router)
    api = APIRouter()

    @api.get(
        "/ready",
        response_model=Ready,
        responses={
            503: {"model": ErrorAnswer, "description": "the default model is starting"}
        },
    )
    async def ready() -> Ready | Response:
        """Whether the default model is loaded. Where it may stop when idle, it counts as ready."""
        if await readiness.holds():
            return Ready()
        return contract_response(
            ServiceUnavailableError("The service is not ready; try again")
        )

    @api.get(
        "/ping",
        response_class=Response,
        responses={204: {"description": "the default model is starting"}},
    )
    async def ping() -> Response:
        """`GET /ready` as RunPod's load balancer asks it: 200, or 204 while the model starts."""
        return Response(status_code=200 if await readiness.holds() else 204)

    return api


class _Readiness:
    """`Router.ready`, asked once a second at most, by however many callers."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._ready = False
        self._asked_at = -math.inf
        self._asking = asyncio.Lock()

    async def holds(self) -> bool:
        async with self._asking:
            if time.monotonic() - self._asked_at >= _STILL_TRUE_S:
                self._ready = await self._router.ready()
                self._asked_at = time.monotonic()
            return self._ready
