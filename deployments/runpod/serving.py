"""Jobs for a running application: the job API, the handler, the loop and the watch, put together.

What this module imports takes seconds, so the worker imports it while Ray and the model start.
"""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import AppArgs
from deployments.contract.errors import ModelUnavailableError
from deployments.runpod import sdk
from deployments.runpod.draining import drain_router
from deployments.runpod.handler import JobHandler
from deployments.runpod.job_api import JobApi
from deployments.runpod.loop import JobLoop, run_jobs
from deployments.runpod.settings import Settings
from deployments.runpod.watch import ServiceWatch

logger = logging.getLogger(__name__)

_FIRST_ANSWER_S = 60.0


def max_concurrency(
    router: DeploymentHandle[Any], settings: Settings, args: AppArgs
) -> int:
    """Jobs in work at the same time: as set, else what the default model's engine decodes together.

    The model is asked in either case. Raises ModelUnavailableError if it does not answer.
    """
    slots = _slots(router.app_name, args)
    return settings.max_concurrency or slots


def do_jobs(
    router: DeploymentHandle[Any],
    settings: Settings,
    args: AppArgs,
    max_concurrency: int,
) -> bool:
    """Do jobs until SIGTERM, or until the service dies; gives whether it is still alive.

    A test job is done alone, see `sdk.do_test_job`.
    """
    if sdk.has_test_job():
        sdk.do_test_job(JobHandler(router, settings, args).handle)
        return True
    for option in sdk.ignored_options():
        logger.warning("event=ignored_option option=%s", option)
    return asyncio.run(_do_jobs(router, settings, args, max_concurrency))


async def _do_jobs(
    router: DeploymentHandle[Any],
    settings: Settings,
    args: AppArgs,
    max_concurrency: int,
) -> bool:
    async with sdk.AsyncClientSession() as session:
        api = JobApi(session)
        jobs = JobHandler(router, settings, args, api)
        service = ServiceWatch(router)

        async def watch() -> None:
            await service.death()
            jobs.fail_all()

        async def drain() -> None:
            if not service.died:
                await drain_router(router)

        await run_jobs(JobLoop(api, jobs.handle, max_concurrency), watch, drain)
    return not service.died


def _slots(application: str, args: AppArgs) -> int:
    model = args.model(args.default_model)
    replica = serve.get_deployment_handle(model.deployment, application)
    try:
        answer = replica.slots.remote().result(timeout_s=_FIRST_ANSWER_S)
        return int(answer.slots)
    except Exception as error:  # noqa: BLE001 - whatever it was, there is no worker without it
        reason = f"it does not answer ({type(error).__name__})"
        raise ModelUnavailableError(model.name, reason) from None
