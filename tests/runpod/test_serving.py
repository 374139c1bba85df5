"""What serving decides before it takes the first job."""

from typing import Any, cast

import pytest
from ray import serve

from deployments.config import AppArgs
from deployments.contract.errors import ModelUnavailableError
from deployments.runpod import sdk, serving
from deployments.runpod.settings import read_settings

SETTINGS = read_settings({})


class Replica:
    """A handle of a model with this many slots; None: it does not answer."""

    def __init__(self, slots: int | None) -> None:
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return self

    @property
    def slots(self) -> Any:
        return self

    def remote(self) -> "Answer":
        return Answer(self._slots)


class Answer:
    def __init__(self, slots: int | None) -> None:
        self._slots = slots

    def result(self, timeout_s: float) -> "Answer":
        if self._slots is None:
            raise TimeoutError
        return self

    @property
    def slots(self) -> int | None:
        return self._slots


class Router:
    app_name = "speech"

    def options(self, *, stream: bool) -> "Router":
        return self


@pytest.mark.parametrize(("variable", "jobs"), [("", 8), ("3", 3)])
def test_as_many_jobs_as_the_model_has_slots_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, variable: str, jobs: int
) -> None:
    asked: list[tuple[str, ...]] = []

    def handle(*deployment: str) -> Replica:
        asked.append(deployment)
        return Replica(8)

    monkeypatch.setattr(serve, "get_deployment_handle", handle)
    settings = read_settings({"RUNPOD_MAX_CONCURRENCY": variable})
    router = cast(Any, Router())
    assert serving.max_concurrency(router, settings, AppArgs()) == jobs
    assert asked == [("whisper-base", "speech")]


@pytest.mark.parametrize("variable", ["", "3"])
def test_a_model_that_does_not_answer_is_found_before_the_first_job(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: Replica(None))
    settings = read_settings({"RUNPOD_MAX_CONCURRENCY": variable})
    with pytest.raises(ModelUnavailableError, match="does not answer .TimeoutError."):
        serving.max_concurrency(cast(Any, Router()), settings, AppArgs())


def do_jobs() -> bool:
    return serving.do_jobs(cast(Any, Router()), SETTINGS, AppArgs(), 1)


def test_after_the_sdks_own_server_no_jobs_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(sdk, "has_test_job", lambda: True)
    monkeypatch.setattr(sdk, "do_test_job", served.append)
    monkeypatch.setattr(serving, "run_jobs", None)
    assert do_jobs()
    assert len(served) == 1


def test_options_that_have_no_effect_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run_jobs(*_: object) -> None:
        pass

    monkeypatch.setattr(sdk, "has_test_job", lambda: False)
    monkeypatch.setattr(serving, "run_jobs", run_jobs)
    monkeypatch.setattr("sys.argv", ["worker", "--rp_serve_api"])
    assert do_jobs()
    assert caplog.text.count("event=ignored_option option=--rp_serve_api") == 1
