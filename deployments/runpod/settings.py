"""The RunPod worker's settings in its environment, checked before anything is started.

RunPod's console hands values on as text: unset ones as `""`, and numbers also as `1e+01`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments import hosts
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import parse_options
from deployments.contract.values import is_blank, is_null, whole_number

# RunPod's limit for a result of /run; /runsync allows twice as much.
_JOB_API_LIMIT_BYTES = 10_000_000
# By RunPod's own names: queue-based, and load balancing.
_ENDPOINT_TYPES = ("QB", "LB")
# RunPod's default for PORT.
_HTTP_PORT = 80
# Longer than RunPod lets any job live.
_MOST_SECONDS = 7 * 24 * 3600
# The limits of the configuration that a variable can set, and how far. `variable_of` names it.
LIMITS = {
    "max_audio_s": _MOST_SECONDS,
    "max_download_bytes": 1 << 40,
    "request_timeout_s": _MOST_SECONDS,
}
_ALLOW_HOSTS = "WHISPER_ALLOW_HOSTS"


class SettingsError(Exception):
    """A variable of the environment cannot be used. The text names the variable and its rule."""


@dataclass(frozen=True)
class Settings:
    """The checked environment.

    model: preloaded, and used by a job that names none; None: as configured
    job_defaults: fields of the contract for what a job leaves out
    limits: options of the configuration that are set here, by name
    allow_hosts: what may be fetched from although it is not public; none: as configured
    max_concurrency: jobs in work at the same time; None: what the engine's slots hold
    max_result_bytes: of a result as it is sent
    load_balancing: whether the worker takes no jobs and serves HTTP instead
    http_port: where the HTTP door opens; None: it does not
    health_port: where `GET /ping` is answered from the start; None: nowhere
    ignored: variables that are set and have no effect on this type of endpoint
    """

    model: str | None
    job_defaults: dict[str, Any]
    limits: dict[str, int]
    allow_hosts: list[str]
    max_concurrency: int | None
    max_result_bytes: int
    load_balancing: bool
    http_port: int | None
    health_port: int | None
    ignored: tuple[str, ...]

    def with_defaults(self, job_input: dict[str, Any], args: AppArgs) -> dict[str, Any]:
        """A job's input with the defaults for what it leaves out.

        The default language does not apply to a model that knows English only.
        """
        defaults = dict(self.job_defaults)
        model = job_input.get("model")
        if model is None or is_blank(model):
            model = args.default_model
        if _knows_english_only(model, args):
            defaults.pop("language", None)
        given = {
            key: value
            for key, value in job_input.items()
            if key not in defaults or not _is_absent(key, value)
        }
        return defaults | given

    def applied_to(self, args: AppArgs) -> AppArgs:
        """The application's arguments, with the worker's limits, and its model as the default one,
        preloaded.

        Raises SettingsError if there is no such model, or if it does not know the default language.
        """
        try:
            default = args.model(self.model or args.default_model)
        except InvalidRequestError as error:
            raise SettingsError(f"WHISPER_MODEL: {error}") from None
        self._check_language(default, args)
        preloaded = {"min_replicas": max(1, default.min_replicas or 0)}
        models = [
            model.model_copy(update=preloaded) if model.name == default.name else model
            for model in args.models
        ]
        update = {"default_model": default.name, "models": models} | self._options
        return args.model_copy(update=update)

    @property
    def _options(self) -> dict[str, Any]:
        """The options of the configuration that are set here, by name."""
        allowed = {"allow_hosts": self.allow_hosts} if self.allow_hosts else {}
        return self.limits | allowed

    def check_not_overruled(self, user_config: Mapping[str, Any]) -> None:
        """Refuse options that are also in the Router's `user_config`, which would win.

        Raises SettingsError.
        """
        if both := [option for option in self._options if option in user_config]:
            raise SettingsError(
                f"{variable_of(both[0])} and {both[0]} in the Router's user_config set the same"
                " option: remove one of them"
            )

    def _check_language(self, model: ModelArgs, args: AppArgs) -> None:
        if _knows_english_only(model.name, args):
            return
        options = parse_options({"language": self.job_defaults.get("language")})
        try:
            args.check_fits(options, model)
        except InvalidRequestError as error:
            raise SettingsError(f"WHISPER_LANGUAGE: {error}") from None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError."""
    values = {
        variable: text
        for variable, value in environment.items()
        if (text := value.strip())
    }
    load_balancing = _is_load_balancing(values)
    http_port, health_port = _ports(values, load_balancing)
    return Settings(
        model=values.get("WHISPER_MODEL"),
        job_defaults={
            field: _checked(field, variable, values[variable])
            for field, variable in _JOB_DEFAULTS.items()
            if variable in values
        },
        limits={
            option: limit
            for option, most in LIMITS.items()
            if (limit := _whole_number(values, variable_of(option), 1, most))
        },
        allow_hosts=_hosts(values.get(_ALLOW_HOSTS, "")),
        max_concurrency=_whole_number(values, "RUNPOD_MAX_CONCURRENCY", 1, 1000),
        max_result_bytes=_whole_number(
            values, "WHISPER_MAX_RESULT_BYTES", 1000, 1 << 30
        )
        or _JOB_API_LIMIT_BYTES,
        load_balancing=load_balancing,
        http_port=http_port,
        health_port=health_port,
        ignored=tuple(
            variable for variable in _OF_JOBS if load_balancing and variable in values
        ),
    )


def variable_of(option: str) -> str:
    """The variable that sets a limit of the configuration; errors name it."""
    return f"WHISPER_{option.upper()}"


def _is_load_balancing(values: Mapping[str, str]) -> bool:
    kind = values.get("WHISPER_ENDPOINT_TYPE", "QB").upper()
    if kind not in _ENDPOINT_TYPES:
        raise SettingsError(
            "WHISPER_ENDPOINT_TYPE must be QB (queue-based) or LB (load balancing)"
        )
    return kind == "LB"


def _ports(
    values: Mapping[str, str], load_balancing: bool
) -> tuple[int | None, int | None]:
    """The ports of HTTP and of the health check; None where there is none."""
    http_port = _whole_number(values, "WHISPER_HTTP_PORT", 1, 65535)
    health_port = _whole_number(values, "PORT_HEALTH", 1, 65535)
    if not load_balancing:
        return http_port, health_port
    http_port = _whole_number(values, "PORT", 1, 65535) or _HTTP_PORT
    # The HTTP door answers `GET /ping` as well.
    return http_port, None if health_port == http_port else health_port


def _is_absent(field: str, value: Any) -> bool:
    """Whether the contract takes this value of a field for absent."""
    if field == "language":
        return False
    if is_blank(value):
        return True
    # Null is a value where Whisper gives it a meaning.
    return field != "beam_size" and (value is None or is_null(value))


def _knows_english_only(model: Any, args: AppArgs) -> bool:
    try:
        official = args.model(str(model)).official
    except InvalidRequestError:
        # The Router refuses the request.
        return False
    return official is not None and not official.multilingual


def _whole_number(
    values: Mapping[str, str], variable: str, least: int, most: int
) -> int | None:
    if variable not in values:
        return None
    value = whole_number(values[variable])
    if isinstance(value, int) and least <= value <= most:
        return value
    raise SettingsError(f"{variable} must be a whole number from {least} to {most}")


def _hosts(text: str) -> list[str]:
    try:
        return [hosts.host_and_port(item) for item in text.split(",") if item.strip()]
    except ValueError as error:
        rule = str(error).removeprefix("allow_hosts: ")
        raise SettingsError(f"{_ALLOW_HOSTS}: {rule}") from None


def _checked(field: str, variable: str, text: str) -> Any:
    """The value as the contract reads it from text."""
    try:
        return getattr(parse_options({field: text}), field)
    except InvalidRequestError as error:
        rule = str(error).removeprefix(f"Invalid {field}: ")
        raise SettingsError(f"{variable} {rule}") from None


_JOB_DEFAULTS = {
    "language": "WHISPER_LANGUAGE",
    "temperature": "WHISPER_TEMPERATURE",
    "beam_size": "WHISPER_BEAM_SIZE",
    "word_timestamps": "WHISPER_WORD_TIMESTAMPS",
}
# What only jobs use.
_OF_JOBS = (
    *_JOB_DEFAULTS.values(),
    "RUNPOD_MAX_CONCURRENCY",
    "WHISPER_MAX_RESULT_BYTES",
    "WHISPER_HTTP_PORT",
)
