import os

import pytest

from deployments.runpod.environment import configure_environment


def test_ray_demands_a_token_that_is_new_for_each_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = set()
    for _ in range(2):
        monkeypatch.setattr(os, "environ", {})
        configure_environment()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


def test_a_variable_that_is_set_keeps_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"RUNPOD_LOG_LEVEL": "DEBUG"})
    configure_environment()
    assert os.environ["RUNPOD_LOG_LEVEL"] == "DEBUG"
