"""The bodies of HTTP requests: JSON, a form with its file, or a file alone.

A file goes to disk while it arrives, and no body is read further than its limit. All bodies
together hold at most `max_spool_bytes`, until the request has ended or its file is closed. What has
not come yet holds nothing, and a body may neither stand still nor come too slowly.
"""

import asyncio
import contextlib
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fastapi import Request
from ray.exceptions import RayError
from starlette.requests import ClientDisconnect

from deployments.api import json_body
from deployments.api.body_pace import BodyPace
from deployments.api.json_body import RecordingFields
from deployments.api.multipart import MAX_FIELDS_BYTES, Form, file_too_large
from deployments.audio.disk import disk_full_reported
from deployments.audio.spool import Share, SpooledFile
from deployments.config import AppArgs
from deployments.contract.errors import (
    InvalidRequestError,
    RequestCancelledError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)
from deployments.contract.request import short
from deployments.router.request_log import caller_key
from deployments.router.router import Router

_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_FORM = "multipart/form-data"
_UNKNOWN_BYTES = "application/octet-stream"
_FILE_TYPES = ("audio/", "video/", "application/ogg")
# Such a body is refused before it is read, because a large one would be refused for its size.
_REFUSED_TYPES = ("multipart/", "image/")
# A file is written in pieces of this size.
_PIECE_BYTES = 1 << 20


@dataclass(repr=False)
class Body:
    """What came in a request's body.

    fields: the JSON value; of a form, a dict of texts, with a list where a name is repeated
    file: the form's file or the file alone, on disk and at its beginning
    """

    fields: Any
    file: BinaryIO | None = None

    def take_fields(self) -> Any:
        """The fields, which are not kept here: they may hold megabytes of base64."""
        fields, self.fields = self.fields, None
        return fields


class Bodies:
    """Reads the bodies of all requests of an application."""

    def __init__(self, router: Router) -> None:
        self._router = router

    @asynccontextmanager
    async def read(
        self,
        request: Request,
        recording: RecordingFields,
        lists: Collection[str] | None = None,
    ) -> AsyncIterator[Body]:
        """A request's body, whose file is closed at the end.

        recording: what the request's API calls the fields of a recording, for errors
        lists: the fields that a form may repeat; None: any

        Raises UnsupportedMediaTypeError, RequestTooLargeError, OverloadedError,
        RequestTimeoutError, RequestCancelledError if the caller leaves, and InvalidRequestError.
        """
        media_type = _media_type(request)
        _refuse_unread(request, media_type, recording)
        with self._router.spool.share(caller_key.get()) as share:
            reader = _Reader(request, media_type, recording, share, self._router.args)
            try:
                body = await reader.read()
                if media_type == _FORM and lists is not None:
                    _refuse_repeated(body.fields, lists)
                yield body
            finally:
                reader.close()


class _Reader:
    """Reads one body.

    Its file is closed by `close`, whether or not the body has come to its end.
    """

    def __init__(
        self,
        request: Request,
        media_type: str,
        recording: RecordingFields,
        share: Share,
        args: AppArgs,
    ) -> None:
        self._request = request
        self._media_type = media_type
        self._recording = recording
        self._share = share
        self._args = args
        self._max_file_bytes = min(args.max_download_bytes, args.max_spool_bytes)
        self._file: BinaryIO | None = None

    async def read(self) -> Body:
        if self._media_type == _FORM:
            return await self._form()
        if self._media_type.startswith(_FILE_TYPES):
            return await self._file_alone(self._pieces(*self._file_limit()))
        if self._media_type == _UNKNOWN_BYTES:
            return await self._json_or_file()
        return await self._json(self._pieces(*self._json_limit()))

    def close(self) -> None:
        if self._file is not None:
            # Where the disk is full, closing the file tries to write once more.
            with contextlib.suppress(OSError):
                self._file.close()

    async def _form(self) -> Body:
        content_type = self._request.headers["content-type"]
        form = Form(content_type, self._new_file, self._max_file_bytes)
        limit = self._max_file_bytes + MAX_FIELDS_BYTES
        pieces = self._pieces(limit, file_too_large(self._max_file_bytes))
        await self._write(pieces, form.feed, form.finish)
        return Body(form.fields, form.file)

    async def _file_alone(self, pieces: AsyncGenerator[bytes, None]) -> Body:
        with disk_full_reported():
            file = self._new_file()

        def finish() -> None:
            if not file.tell():
                raise InvalidRequestError(
                    f"The request body is empty: {self._recording.what_to_send}"
                )
            file.seek(0)

        await self._write(pieces, file.write, finish)
        return Body({}, file)

    async def _json_or_file(self) -> Body:
        """Of a body whose media type says nothing: `curl` users give it to both."""
        async with aclosing(self._pieces(*self._file_limit())) as pieces:
            start = await anext(pieces, b"")

            async def with_start() -> AsyncGenerator[bytes, None]:
                yield start
                async for piece in pieces:
                    yield piece

            if start.strip() and not json_body.may_be_json(start):
                return await self._file_alone(with_start())
            return await self._json(with_start())

    async def _json(self, pieces: AsyncGenerator[bytes, None]) -> Body:
        body = bytearray()
        limit, too_large = self._json_limit()
        async with aclosing(pieces):
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    raise too_large
        parse = json_body.parse_json
        return Body(
            await asyncio.to_thread(parse, body, self._media_type, self._recording)
        )

    def _json_limit(self) -> tuple[int, RequestTooLargeError]:
        limit = min(json_body.MAX_BODY_BYTES, self._args.max_spool_bytes)
        return limit, RequestTooLargeError(
            f"The request body is larger than {limit >> 20} MiB:"
            f" send a large file in a form, or give its URL as '{self._recording.url}'"
        )

    def _file_limit(self) -> tuple[int, RequestTooLargeError]:
        return self._max_file_bytes, file_too_large(self._max_file_bytes)

    def _new_file(self) -> BinaryIO:
        self._file = cast(BinaryIO, SpooledFile(self._share))
        return self._file

    async def _write(
        self,
        pieces: AsyncGenerator[bytes, None],
        feed: Callable[[bytes], Any],
        finish: Callable[[], None],
    ) -> None:
        """Give what arrives to `feed`, which writes to the disk, in a thread."""
        waiting: list[bytes] = []
        size = 0
        with disk_full_reported():
            async with aclosing(pieces):
                async for piece in pieces:
                    waiting.append(piece)
                    size += len(piece)
                    if size >= _PIECE_BYTES:
                        await asyncio.to_thread(feed, b"".join(waiting))
                        waiting, size = [], 0
            await asyncio.to_thread(feed, b"".join(waiting))
            await asyncio.to_thread(finish)

    async def _pieces(
        self, limit: int, too_large: RequestTooLargeError
    ) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, up to its limit and within the spool."""
        length = self._request.headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else 0
        if announced > limit:
            raise too_large
        self._share.check(announced)
        received = 0
        pace = BodyPace(self._args)
        stream = self._request.stream()
        try:
            while True:
                async with pace.wait():
                    piece = await anext(stream, None)
                if piece is None:
                    return
                pace.received(len(piece))
                received += len(piece)
                if received > limit:
                    raise too_large
                self._share.received(received)
                yield piece
        except (ClientDisconnect, RayError):
            # Where the proxy has dropped the request first, Serve raises Ray's error.
            raise RequestCancelledError("The caller left") from None


def _media_type(request: Request) -> str:
    """Such as `text/plain`; empty where the header is absent or is no media type."""
    header = request.headers.get("content-type", "")
    media_type = header.partition(";")[0].strip().lower()
    return media_type if _MEDIA_TYPE.fullmatch(media_type) else ""


def _refuse_unread(
    request: Request, media_type: str, recording: RecordingFields
) -> None:
    """Refuse by its headers a body that can hold no request."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"The request body's Content-Encoding is '{short(encoding)}':"
            " send it uncompressed and leave that header out"
        )
    if media_type != _FORM and media_type.startswith(_REFUSED_TYPES):
        raise UnsupportedMediaTypeError(
            f"The request body is {short(media_type)}: {recording.what_to_send}"
        )


def _refuse_repeated(fields: dict[str, Any], lists: Collection[str]) -> None:
    for name, value in fields.items():
        if isinstance(value, list) and name not in lists:
            raise InvalidRequestError(
                f"Invalid {short(name)}: the form has this field {len(value)} times; send it once"
            )
