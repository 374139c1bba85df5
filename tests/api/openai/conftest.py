from collections.abc import Iterator

import pytest

from tests.api.openai.scripted import Stage, StartService
from tests.support.http_server import served_app


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    stage = Stage()
    with served_app(stage) as url:
        stage.url = url
        yield stage


@pytest.fixture
def service(stage: Stage) -> StartService:
    """Start a service whose model answers as told, on a real port."""
    return stage.service
