"""The Hub's files: by RunPod's schema, and true of this worker."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deployments import catalog
from deployments.contract.request import parse_request
from deployments.runpod.settings import (
    LIMITS,
    SettingsError,
    read_settings,
    variable_of,
)
from deployments.serve_config import read_config

ROOT = Path(__file__).parent.parent.parent
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
ENV = {item["key"]: item["input"] for item in HUB["config"]["env"]}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(("name", "content"), [("hub", HUB), ("tests", TESTS)])
def test_the_file_follows_runpods_schema(name: str, content: Any) -> None:
    schema = json.loads(Path(__file__).with_name(f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content)


def test_what_the_hub_asks_for_is_there() -> None:
    for name in (".runpod/handler.py", "Dockerfile", "README.md"):
        assert (ROOT / name).is_file()


def as_text(key: str, value: Any) -> str:
    """What the console hands on to the container."""
    if isinstance(value, bool):
        return str(ENV[key]["trueValue" if value else "falseValue"])
    return str(value)


@pytest.mark.parametrize("preset", HUB["config"]["presets"], ids=lambda p: p["name"])
def test_a_preset_sets_what_the_worker_reads(preset: dict[str, Any]) -> None:
    environment = {key: as_text(key, item["default"]) for key, item in ENV.items()}
    environment |= {k: as_text(k, v) for k, v in preset["defaults"].items()}
    settings = read_settings(environment)
    assert settings.model == preset["defaults"]["WHISPER_MODEL"]
    assert settings.model in models_in_the_image()
    language = preset["defaults"]["WHISPER_LANGUAGE"]
    assert settings.job_defaults.get("language") == (language or None)
    words = preset["defaults"]["WHISPER_WORD_TIMESTAMPS"]
    assert settings.job_defaults["word_timestamps"] is words


def test_the_presets_are_for_the_three_models_and_for_portuguese_with_words() -> None:
    presets = [preset["defaults"] for preset in HUB["config"]["presets"]]
    assert {preset["WHISPER_MODEL"] for preset in presets} == set(models_in_the_image())
    assert any(
        preset["WHISPER_LANGUAGE"] == "pt" and preset["WHISPER_WORD_TIMESTAMPS"]
        for preset in presets
    )


def test_every_variable_changes_what_the_worker_does() -> None:
    untouched = read_settings({})
    examples = {"string": "3", "number": "1", "boolean": "true"}
    for key, item in ENV.items():
        value = {"WHISPER_LANGUAGE": "pt"}.get(key, examples[item["type"]])
        assert read_settings({key: value}) != untouched, key


def test_a_limit_has_the_configurations_default_and_the_workers_bounds() -> None:
    _, args = read_config()
    for option in LIMITS:
        item = ENV[variable_of(option)]
        assert item["default"] == getattr(args, option)
        # The console may write any number in this form.
        for bound in (item["min"], item["max"], item["default"]):
            settings = read_settings({variable_of(option): f"{bound:.12e}"})
            assert settings.limits == {option: bound}
        for beyond in (item["min"] - 1, item["max"] + 1):
            with pytest.raises(SettingsError, match=variable_of(option)):
                read_settings({variable_of(option): str(beyond)})


def test_every_official_model_can_be_chosen() -> None:
    choices = {option["value"] for option in ENV["WHISPER_MODEL"]["options"]}
    assert choices == set(catalog.MODELS)


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_a_hub_test_is_a_request_of_the_contract(test: dict[str, Any]) -> None:
    model = parse_request(test["input"]).model or TESTS["config"]["env"][0]["value"]
    assert model in models_in_the_image()


def test_the_allowed_cuda_versions_begin_with_pytorchs_own() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    pinned = re.search(r"^cuda-toolkit==(\d+\.\d+)", pins, re.MULTILINE)
    assert pinned is not None
    for config in (HUB["config"], TESTS["config"]):
        assert config["allowedCudaVersions"][0] == pinned[1]


def test_the_models_in_the_image_are_served() -> None:
    _, args = read_config()
    assert all(args.model(name) for name in models_in_the_image())


def models_in_the_image() -> list[str]:
    default = re.search(r'^ARG MODELS="([^"]*)"', DOCKERFILE, re.MULTILINE)
    assert default is not None
    return default[1].split()
