"""The routes of OpenAI's audio API."""

from fastapi import APIRouter

from deployments.api.bodies import Bodies
from deployments.router.router import Router


def routes(router: Router, bodies: Bodies) -> APIRouter:
    return APIRouter()
