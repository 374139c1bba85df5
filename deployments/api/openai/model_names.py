"""Which served model a client means that names one of OpenAI's."""

import re

from deployments.api.openai.errors import UnknownModelError
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import short

# What `GET /v1/models` lists; clients may add a date or one of the endings below.
NAMES = (
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-transcribe",
)
_TRANSCRIBES = re.compile(r"whisper-1|gpt-(?:[a-z0-9.]+-)*transcribe(?:-[a-z0-9.]+)*")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}")


def served_model(name: str, args: AppArgs) -> ModelArgs:
    """The served model for a name: one that the configuration maps, a served one's, or OpenAI's.

    Raises UnknownModelError.
    """
    plain = name.strip().lower().removeprefix("openai/")
    mapped = {key.lower(): model for key, model in args.openai_models.items()}
    for key in (name.strip().lower(), plain, _DATE.sub("", plain)):
        if key in mapped:
            return args.model(mapped[key])
    try:
        return args.model(name)
    except InvalidRequestError:
        if _TRANSCRIBES.fullmatch(plain):
            return args.model(args.default_model)
    valid = ", ".join([*args.valid_names(), *names_of_openai(args)])
    raise UnknownModelError(
        f"Invalid model: '{short(name)}' does not exist. Valid models: {valid}"
    )


def names_of_openai(args: AppArgs) -> list[str]:
    """OpenAI's names that are answered, those of the configuration among them."""
    names = dict.fromkeys([*args.openai_models, *NAMES])
    return [name for name in names if name not in args.valid_names()]
