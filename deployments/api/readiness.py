"""Whether requests should come here: `GET /ready` for orchestrators, `GET /ping` for RunPod."""

import asyncio
import math
import time

from fastapi import APIRouter, Request, Response

from deployments.api.described_errors import described
from deployments.api.refusals import failures_logged
from deployments.contract.answer import ErrorAnswer, Ready
from deployments.contract.errors import ServiceUnavailableError
from deployments.router.router import Router

_FAILURE = {500: "the service failed on this request"}
# Every replica of the default model is asked, so probes share an answer.
_STILL_TRUE_S = 1.0


def routes(router: Router) -> APIRouter:
    readiness = _Readiness(router)
    api = APIRouter()

    @api.get(
        "/ready",
        response_model=Ready,
        responses=described(
            ErrorAnswer,
            _FAILURE | {503: "the default model is starting, or the service stops"},
        ),
    )
    async def ready(request: Request) -> Ready:
        """Whether requests should come here: the default model is loaded, and no drain has begun.

        Where the default model may stop when idle, it counts as loaded.
        """
        with failures_logged(request):
            is_ready = await readiness.holds()
        if not is_ready:
            raise ServiceUnavailableError("The service is not ready; try again")
        return Ready()

    @api.get(
        "/ping",
        response_class=Response,
        responses={
            **described(ErrorAnswer, _FAILURE),
            204: {"description": "the default model is starting, or the service stops"},
        },
    )
    async def ping(request: Request) -> Response:
        """`GET /ready` as RunPod's load balancer asks it: 200, or 204 while there it is a 503."""
        with failures_logged(request):
            is_ready = await readiness.holds()
        return Response(status_code=200 if is_ready else 204)

    return api


class _Readiness:
    """`Router.ready`, asked once a second at most, by however many callers."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._ready = False
        self._asked_at = -math.inf
        self._asking = asyncio.Lock()

    async def holds(self) -> bool:
        if self._router.in_flight.draining:
            return False
        async with self._asking:
            if time.monotonic() - self._asked_at >= _STILL_TRUE_S:
                self._ready = await self._router.ready()
                self._asked_at = time.monotonic()
            return self._ready
