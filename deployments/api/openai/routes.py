"""The routes of OpenAI's audio API."""

from fastapi import APIRouter

from deployments.router.router import Router


def routes(router: Router) -> APIRouter:
    return APIRouter()
