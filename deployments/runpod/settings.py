"""What the RunPod worker is told by its environment, checked before anything is started.

RunPod's console hands values on as text: unset ones as `""`, and numbers also as `1e+01`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import ModelLimits, check_fits_model
from deployments.contract.request import parse_options


class SettingsError(Exception):
    """A variable of the environment cannot be used. Its text names it and says what it may be."""


@dataclass(frozen=True)
class Settings:
    """The checked environment.

    model: preloaded, and used by a job that names none; None: as configured
    job_defaults: fields of the contract for what a job leaves out
    max_concurrency: jobs in work at the same time; None: what the engine's slots hold
    max_result_bytes: of a result as it is sent
    http_port: where the HTTP door opens as well; None: it does not
    """

    model: str | None
    job_defaults: dict[str, Any]
    max_concurrency: int | None
    max_result_bytes: int
    http_port: int | None

    def completed(self, job_input: dict[str, Any], args: AppArgs) -> dict[str, Any]:
        """A job's input with the defaults for what it leaves out.

        The default language stands back where the job's model knows English only.
        """
        defaults = self.job_defaults
        model = args.find_model(str(job_input.get("model") or args.default_model))
        if model and model.official and not model.official.multilingual:
            defaults = {k: v for k, v in defaults.items() if k != "language"}
        given = {
            key: value
            for key, value in job_input.items()
            # To the contract null is absent but where Whisper gives it a meaning.
            if value is not None or key not in defaults or key in _NULLABLE
        }
        return defaults | given

    def check_language(self, model: ModelArgs) -> None:
        """Raises SettingsError if the default language is unknown to a model that knows more than English."""
        language = self.job_defaults.get("language")
        official = model.official
        if language is None or official is None or not official.multilingual:
            return
        try:
            limits = ModelLimits(True, official.num_languages, official.n_vocab)
            check_fits_model(parse_options({"language": language}), model.name, limits)
        except InvalidRequestError as error:
            rule = str(error).removeprefix("Invalid language: ")
            raise SettingsError(f"WHISPER_LANGUAGE: {rule}") from None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError."""
    defaults = {
        field: _checked(field, variable, read(variable, text))
        for field, (variable, read) in _JOB_DEFAULTS.items()
        if (text := environment.get(variable, "").strip())
    }

    def number(variable: str, least: int, most: int) -> int | None:
        text = environment.get(variable, "").strip()
        value = _number(variable, text) if text else None
        if value is not None and not (
            isinstance(value, int) and least <= value <= most
        ):
            raise SettingsError(
                f"{variable} must be a whole number from {least} to {most}"
            )
        return value

    return Settings(
        model=environment.get("WHISPER_MODEL", "").strip() or None,
        job_defaults=defaults,
        max_concurrency=number("RUNPOD_MAX_CONCURRENCY", 1, 1000),
        max_result_bytes=number("WHISPER_MAX_RESULT_BYTES", 1000, 1 << 30)
        or _JOB_API_LIMIT_BYTES,
        http_port=number("WHISPER_HTTP_PORT", 1, 65535),
    )


# Of a result to /run; /runsync takes twice as much.
_JOB_API_LIMIT_BYTES = 10_000_000


def _text(_: str, text: str) -> str:
    return text


def _number(variable: str, text: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{variable} must be a number")
    return int(value) if value.is_integer() else value


def _boolean(variable: str, text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise SettingsError(f"{variable} must be true or false") from None


_NULLABLE = {"language", "beam_size"}
_JOB_DEFAULTS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "language": ("WHISPER_LANGUAGE", _text),
    "temperature": ("WHISPER_TEMPERATURE", _number),
    "beam_size": ("WHISPER_BEAM_SIZE", _number),
    "word_timestamps": ("WHISPER_WORD_TIMESTAMPS", _boolean),
}


def _checked(field: str, variable: str, value: Any) -> Any:
    """By the contract's own rules."""
    try:
        parse_options({field: value})
    except InvalidRequestError as error:
        rule = (
            str(error)
            .removeprefix(f"Invalid {field}: ")
            .removesuffix(", or null to detect")
        )
        raise SettingsError(f"{variable} {rule}") from None
    return value
