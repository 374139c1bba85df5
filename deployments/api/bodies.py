"""The bodies of HTTP requests: JSON, or a form with a file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile

from deployments.api.body import read_json
from deployments.router.router import Router


@dataclass(repr=False)
class Body:
    """What came in a request's body.

    fields: the JSON value; of a form, a dict of texts, with a list where a name is repeated
    file: the form's field `file`, on disk
    """

    fields: Any
    file: BinaryIO | None = None

    def take_fields(self) -> Any:
        """The fields, which are not kept here: they may hold megabytes of base64."""
        fields, self.fields = self.fields, None
        return fields


class Bodies:
    """Reads the bodies of all requests of an application, within `max_uploads_bytes`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """A request's body, whose file is closed at the end.

        Raises UnsupportedMediaTypeError, RequestTooLargeError, OverloadedError,
        RequestCancelledError if the caller leaves, and InvalidRequestError.
        """
        if not request.headers.get("content-type", "").startswith("multipart/"):
            yield Body(await read_json(request))
            return
        async with request.form() as form:
            body = Body({})
            for name in form:
                values = form.getlist(name)
                if name == "file" and isinstance(values[0], UploadFile):
                    body.file = values[0].file
                else:
                    body.fields[name] = values if len(values) > 1 else values[0]
            yield body
