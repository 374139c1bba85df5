"""The service and OpenAI's own client, for the tests of this folder."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from deployments import api
from deployments.replica.transcript import SlotUse
from tests.api.openai.service import Service
from tests.api.openai.transcripts import TRANSCRIPT, segment_events
from tests.support import package_log
from tests.support.handles import Handle, Response
from tests.support.http_server import served_app
from tests.support.routers import router


@pytest.fixture(scope="session")
def running_service() -> Iterator[Service]:
    handle = Handle(slots=[Response([SlotUse(8, 0, 0)])], stream=[])
    with package_log.kept():
        app = api.build(router(handle, "base", "tiny.en", "turbo"))
    with served_app(app) as url:
        yield Service(url, handle)


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.answers(*segment_events(), TRANSCRIPT)
    return running_service


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with service.client() as client:
        yield client
