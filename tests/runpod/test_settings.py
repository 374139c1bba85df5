import pytest

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidAudioError
from deployments.contract.request import parse_options
from deployments.runpod.settings import (
    LIMITS,
    Settings,
    SettingsError,
    read_settings,
    variable_of,
)
from tests.support.handles import Handle
from tests.support.routers import RECORDING, router


def test_an_empty_environment_leaves_everything_to_the_contract() -> None:
    assert read_settings({}) == Settings(
        model=None,
        job_defaults={},
        limits={},
        allow_hosts=[],
        max_concurrency=None,
        max_result_bytes=10_000_000,
        load_balancing=False,
        http_port=None,
        health_port=None,
        ignored=(),
    )


@pytest.mark.parametrize(
    ("environment", "http_port", "health_port"),
    [
        ({}, 80, None),
        ({"PORT": "8000"}, 8000, None),
        ({"PORT": "8000", "PORT_HEALTH": "8000"}, 8000, None),
        ({"PORT": "8e+03", "PORT_HEALTH": "8001"}, 8000, 8001),
        ({"PORT": "", "PORT_HEALTH": "80"}, 80, None),
        ({"WHISPER_HTTP_PORT": "9000"}, 80, None),
    ],
)
def test_behind_a_load_balancer_the_ports_are_those_that_runpod_names(
    environment: dict[str, str], http_port: int, health_port: int | None
) -> None:
    settings = read_settings({"WHISPER_ENDPOINT_TYPE": "lb"} | environment)
    assert settings.load_balancing
    assert (settings.http_port, settings.health_port) == (http_port, health_port)


def test_without_a_load_balancer_its_port_opens_nothing() -> None:
    assert read_settings({"PORT": "80", "WHISPER_ENDPOINT_TYPE": "QB"}) == (
        read_settings({})
    )


def test_what_only_jobs_use_is_told_to_have_no_effect_behind_a_load_balancer() -> None:
    of_jobs = {"WHISPER_LANGUAGE": "pt", "WHISPER_MAX_RESULT_BYTES": "2000"}
    environment = of_jobs | {"WHISPER_MODEL": "turbo"}
    assert read_settings(environment).ignored == ()
    kind = {"WHISPER_ENDPOINT_TYPE": "LB"}
    assert set(read_settings(environment | kind).ignored) == set(of_jobs)


def test_empty_values_count_as_unset() -> None:
    names = ("MODEL", "LANGUAGE", "TEMPERATURE", "BEAM_SIZE", "WORD_TIMESTAMPS")
    unset = {f"WHISPER_{name}": "" for name in names}
    unset |= {"RUNPOD_MAX_CONCURRENCY": " ", "WHISPER_HTTP_PORT": ""}
    unset |= {variable_of(option): "" for option in LIMITS}
    assert read_settings(unset) == read_settings({})


def test_values_are_understood_as_the_console_writes_them() -> None:
    settings = read_settings(
        {
            "WHISPER_MODEL": "turbo",
            "WHISPER_LANGUAGE": "Portuguese",
            "WHISPER_TEMPERATURE": "2e-01",
            "WHISPER_BEAM_SIZE": "1e+01",
            "WHISPER_WORD_TIMESTAMPS": "True",
            "WHISPER_MAX_AUDIO_S": "2.88e+04",
            "WHISPER_MAX_DOWNLOAD_BYTES": "4.294967296e+09",
            "WHISPER_REQUEST_TIMEOUT_S": "7200.0",
            "RUNPOD_MAX_CONCURRENCY": "1.2e+01",
            "WHISPER_MAX_RESULT_BYTES": "2e+07",
            "WHISPER_HTTP_PORT": "8000.0",
            "PORT_HEALTH": "8.001e+03",
        }
    )
    assert settings.model == "turbo"
    assert settings.job_defaults == {
        "language": "Portuguese",
        "temperature": 0.2,
        "beam_size": 10,
        "word_timestamps": True,
    }
    assert settings.limits == {
        "max_audio_s": 28_800,
        "max_download_bytes": 1 << 32,
        "request_timeout_s": 7200,
    }
    assert settings.max_concurrency == 12
    assert settings.max_result_bytes == 20_000_000
    assert settings.http_port == 8000
    assert settings.health_port == 8001


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WHISPER_LANGUAGE", "Elvish", " must be a language code, tag or name"),
        ("WHISPER_TEMPERATURE", "1.5", " must be between 0 and 1"),
        ("WHISPER_TEMPERATURE", "warm", " must be between 0 and 1"),
        ("WHISPER_TEMPERATURE", "nan", " must be between 0 and 1"),
        ("WHISPER_BEAM_SIZE", "11", " must be an integer between 1 and 10"),
        ("WHISPER_BEAM_SIZE", "2.5", " must be an integer between 1 and 10"),
        ("WHISPER_WORD_TIMESTAMPS", "maybe", " must be true or false"),
        ("WHISPER_MAX_AUDIO_S", "4h", " must be a whole number"),
        ("WHISPER_MAX_AUDIO_S", "0", " must be a whole number from 1 to 604800"),
        ("WHISPER_MAX_AUDIO_S", "inf", " must be a whole number"),
        ("WHISPER_MAX_DOWNLOAD_BYTES", "1.5", " must be a whole number from 1 to"),
        ("WHISPER_MAX_DOWNLOAD_BYTES", "1e+13", " must be a whole number from 1 to"),
        ("WHISPER_REQUEST_TIMEOUT_S", "-1", " must be a whole number from 1 to 604800"),
        ("RUNPOD_MAX_CONCURRENCY", "0", " must be a whole number from 1 to 1000"),
        ("WHISPER_MAX_RESULT_BYTES", "5", " must be a whole number from 1000 to"),
        ("WHISPER_HTTP_PORT", "99999", " must be a whole number from 1 to 65535"),
        ("WHISPER_ENDPOINT_TYPE", "queue", " must be QB (queue-based) or LB ("),
        ("PORT_HEALTH", "high", " must be a whole number from 1 to 65535"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({variable: value})
    assert str(caught.value).startswith(variable + message)


def test_a_limit_that_the_routers_user_config_would_overrule_is_refused() -> None:
    settings = read_settings({"WHISPER_MAX_AUDIO_S": "60"})
    settings.check_not_overruled({"request_timeout_s": 60})
    with pytest.raises(SettingsError) as caught:
        settings.check_not_overruled({"request_timeout_s": 60, "max_audio_s": 60})
    assert str(caught.value) == (
        "WHISPER_MAX_AUDIO_S and max_audio_s in the Router's user_config set the same option:"
        " remove one of them"
    )


def test_a_variable_that_is_nearly_right_is_refused_with_a_hint() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"WHISPER_LANGUAGE": "portugese"})
    assert str(caught.value).startswith("WHISPER_LANGUAGE must be a language code")
    assert str(caught.value).endswith("; did you mean 'portuguese'?")


@pytest.mark.parametrize(
    ("written", "code"), [("pt_BR", "pt"), ("Português", "pt"), ("por", "pt")]
)
def test_the_language_is_read_as_in_a_request(written: str, code: str) -> None:
    settings = read_settings({"WHISPER_LANGUAGE": written})
    job = settings.with_defaults({}, AppArgs())
    assert parse_options(job).language_code == code


@pytest.mark.parametrize("written", ["auto", "null"])
def test_variables_can_ask_for_null(written: str) -> None:
    settings = read_settings({"WHISPER_LANGUAGE": written, "WHISPER_BEAM_SIZE": "null"})
    assert settings.job_defaults == {"language": None, "beam_size": None}


def test_a_job_can_ask_for_detection_where_a_language_is_the_default() -> None:
    settings = read_settings({"WHISPER_LANGUAGE": "pt"})
    for asked in (None, "", "auto"):
        job = settings.with_defaults({"language": asked}, AppArgs())
        assert parse_options(job).language_code is None


def test_a_job_gets_the_defaults_for_what_it_leaves_out() -> None:
    settings = read_settings(
        {
            "WHISPER_LANGUAGE": "pt",
            "WHISPER_BEAM_SIZE": "3",
            "WHISPER_WORD_TIMESTAMPS": "true",
            "WHISPER_TEMPERATURE": "0.2",
        }
    )
    job = {"audio": "x", "beam_size": None, "word_timestamps": None, "task": None}
    assert settings.with_defaults(job, AppArgs()) == {
        "audio": "x",
        "task": None,
        "language": "pt",
        # Whisper gives this null a meaning; elsewhere null is absent.
        "beam_size": None,
        "word_timestamps": True,
        "temperature": 0.2,
    }


def test_what_the_contract_takes_for_absent_gets_the_default_too() -> None:
    settings = read_settings(
        {"WHISPER_BEAM_SIZE": "3", "WHISPER_WORD_TIMESTAMPS": "true"}
    )
    job = {"beam_size": " ", "word_timestamps": "null"}
    request = parse_options(settings.with_defaults(job, AppArgs()))
    assert (request.beam_size, request.word_timestamps) == (3, True)
    request = parse_options(settings.with_defaults({"beam_size": "null"}, AppArgs()))
    assert request.beam_size is None


@pytest.mark.parametrize("default", ["base", "tiny.en"])
def test_a_default_language_stands_back_where_the_model_knows_english_only(
    default: str,
) -> None:
    settings = read_settings({"WHISPER_LANGUAGE": "pt"})
    args = AppArgs(default_model=default)
    request = {} if default == "tiny.en" else {"model": "base.en"}
    assert settings.with_defaults(request, args) == request
    assert settings.with_defaults({"model": "base"}, args)["language"] == "pt"


def test_a_job_whose_model_is_unknown_is_left_to_the_router() -> None:
    settings = read_settings({"WHISPER_LANGUAGE": "pt"})
    request = {"model": ["no", "name"]}
    assert settings.with_defaults(request, AppArgs()) == request | {"language": "pt"}


def test_a_default_language_that_the_default_model_does_not_know_is_refused() -> None:
    settings = read_settings({"WHISPER_LANGUAGE": "yue"})
    for known in ("large-v3", "tiny.en"):
        settings.applied_to(AppArgs(default_model=known))
    with pytest.raises(SettingsError, match="WHISPER_LANGUAGE: Invalid language: mod"):
        settings.applied_to(AppArgs(default_model="base"))


def test_the_environments_model_is_the_default_one_and_preloaded() -> None:
    configured = AppArgs(models=[ModelArgs(name="base"), ModelArgs(name="turbo")])
    settings = read_settings({"WHISPER_MODEL": "openai/whisper-large-v3-turbo"})
    args = settings.applied_to(configured)
    assert args.default_model == "turbo"
    replicas = {model.name: args.min_replicas(model) for model in args.models}
    assert replicas == {"base": 0, "turbo": 1}
    assert configured.default_model == "base"
    assert configured.models[1].min_replicas is None


def test_the_configurations_replicas_of_the_model_stand() -> None:
    model = ModelArgs(name="base", min_replicas=2, max_replicas=3)
    args = read_settings({}).applied_to(AppArgs(models=[model]))
    assert args.models == [model]


def test_a_model_that_is_not_served_is_refused() -> None:
    settings = read_settings({"WHISPER_MODEL": "giant"})
    with pytest.raises(SettingsError, match="WHISPER_MODEL: Invalid model: 'giant'. V"):
        settings.applied_to(AppArgs())


def test_the_environments_limits_replace_the_configurations() -> None:
    configured = AppArgs(max_audio_s=60, request_timeout_s=70)
    assert read_settings({}).applied_to(configured).max_audio_s == 60
    args = read_settings({"WHISPER_MAX_AUDIO_S": "90"}).applied_to(configured)
    assert (args.max_audio_s, args.request_timeout_s) == (90, 70)


@pytest.mark.parametrize("option", LIMITS)
def test_a_limit_that_can_be_set_is_one_of_the_configuration(option: str) -> None:
    for value in (1, LIMITS[option]):
        args = read_settings({variable_of(option): str(value)}).applied_to(AppArgs())
        # Nothing that the configuration's own rules would refuse.
        assert getattr(AppArgs.model_validate(args.model_dump()), option) == value


async def test_an_error_names_the_limit_that_a_variable_sets() -> None:
    args = read_settings({"WHISPER_MAX_AUDIO_S": "10"}).applied_to(AppArgs())
    with pytest.raises(InvalidAudioError, match=r"0:00:10 \(max_audio_s: 10\)$"):
        await router(Handle(), max_audio_s=args.max_audio_s).answer(RECORDING)
    assert variable_of("max_audio_s") == "WHISPER_MAX_AUDIO_S"
