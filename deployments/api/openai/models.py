"""The served models, as OpenAI lists its own."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from deployments import catalog
from deployments.api.openai.model_names import names_of_openai, served_model
from deployments.config import AppArgs
from deployments.contract.answer import ServedModel

# When OpenAI published the weights; all that are not named came with the first release.
_FIRST_RELEASE = datetime(2022, 9, 21, tzinfo=UTC)
_RELEASES = {
    "large-v2": datetime(2022, 12, 5, tzinfo=UTC),
    "large-v3": datetime(2023, 11, 6, tzinfo=UTC),
    "turbo": datetime(2024, 9, 30, tzinfo=UTC),
}


class Model(ServedModel):
    """One name that a request may use, and the served model behind it.

    id: the name; where it is not the same as `name`, it is an alias
    created: when the weights were published, in seconds since 1970
    owned_by: who made the weights
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["openai", "user"]


class ModelList(BaseModel):
    """Every name that a request may use."""

    object: Literal["list"] = "list"
    data: list[Model]


def model_list(served: list[dict[str, Any]], args: AppArgs) -> ModelList:
    """All served models, each followed by its aliases.

    served: of `Router.models`
    """
    aliases = {name: served_model(name, args).name for name in names_of_openai(args)}
    data = [_model(row, name, args) for row in served for name in _names(row, aliases)]
    return ModelList(data=data)


def one_model(served: list[dict[str, Any]], args: AppArgs, name: str) -> Model:
    """The model of a name, in any form that a request may use. Raises UnknownModelError."""
    found = served_model(name, args).name
    [row] = [row for row in served if row["name"] == found]
    return _model(row, name, args)


def _names(row: dict[str, Any], aliases: dict[str, str]) -> Iterator[str]:
    yield row["name"]
    yield from row["aliases"]
    yield from (alias for alias, name in aliases.items() if name == row["name"])


def _model(row: dict[str, Any], name: str, args: AppArgs) -> Model:
    model = args.model(row["name"])
    official = model.name in catalog.MODELS and model.checkpoint is None
    released = _RELEASES.get(model.base_model or model.name, _FIRST_RELEASE)
    return Model(
        **row,
        id=name,
        created=int(released.timestamp()),
        owned_by="openai" if official else "user",
    )
