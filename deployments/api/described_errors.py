"""What the OpenAPI description says of errors."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# By status, of every route that needs a key.
KEY_REFUSALS = {
    401: "the request has no valid API key",
    403: "the service has no keys, or does not know the web page that sent the request",
}


def described(
    body: type[BaseModel], descriptions: Mapping[int, str]
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a FastAPI route.

    body: of these errors
    descriptions: by status, what has gone wrong
    """
    return {
        status: {"model": body, "description": description}
        for status, description in descriptions.items()
    }
